//! Medians, percentiles and ratios of slices.

/// Returns the median: the middle value, or the mean of both. `None` without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Returns the smallest and the largest value.
pub(crate) fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    Some((*sorted.first()?, *sorted.last()?))
}

/// Returns the value that `share` of all do not exceed (nearest rank).
pub(crate) fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let sorted = sorted(values);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Returns the median of `values[slice] / others[slice]` over the slices that both have. Two
/// numbers of one slice were measured within seconds of each other, so the effect of a slow minute
/// of the machine cancels out.
pub(crate) fn median_ratio(values: &[Option<f64>], others: &[Option<f64>]) -> Option<f64> {
    let ratio = |(value, other): (&Option<f64>, &Option<f64>)| Some((*value)? / (*other).filter(|other| *other > 0.0)?);
    let ratios: Vec<f64> = values.iter().zip(others).filter_map(ratio).collect();
    median(&ratios)
}

/// Returns the best value of each slice.
pub(crate) fn best_of_slices(stores: &[&[Option<f64>]], is_smaller_better: bool) -> Vec<Option<f64>> {
    let slices = stores.iter().map(|store| store.len()).max().unwrap_or(0);
    let best = if is_smaller_better { f64::min } else { f64::max };
    let of_slice = |slice: usize| stores.iter().filter_map(|store| *store.get(slice)?).reduce(best);
    (0..slices).map(of_slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
        assert_eq!(bounds(&[9.0, 1.0, 2.0]), Some((1.0, 9.0)));
        assert_eq!(bounds(&[]), None);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&[5.0], 0.99), Some(5.0));
        assert_eq!(percentile(&[], 0.99), None);
    }

    /// The ratio of medians would be 1.0 here, which neither slice shows.
    #[test]
    fn ratios_are_taken_slice_by_slice() {
        let left = [Some(2.0), Some(20.0), Some(200.0)];
        let right = [Some(1.0), Some(10.0), Some(20.0)];
        assert_eq!(median_ratio(&left, &right), Some(2.0));
        assert_eq!(median_ratio(&[None, Some(20.0)], &[Some(1.0), Some(10.0)]), Some(2.0));
        assert_eq!(median_ratio(&[Some(1.0)], &[None]), None);
        assert_eq!(median_ratio(&[Some(1.0)], &[Some(0.0)]), None);
    }

    #[test]
    fn the_best_differs_by_slice() {
        let (left, right) = ([Some(1.0), Some(4.0), None], [Some(2.0), Some(3.0), None]);
        assert_eq!(best_of_slices(&[&left, &right], true), [Some(1.0), Some(3.0), None]);
        assert_eq!(best_of_slices(&[&left, &right], false), [Some(2.0), Some(4.0), None]);
        assert_eq!(best_of_slices(&[], true), []);
    }
}
