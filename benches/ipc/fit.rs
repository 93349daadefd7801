//! Weighted least squares: the coefficients c for which Σ wᵢ (yᵢ − Σⱼ cⱼ xᵢⱼ)² is least, with wᵢ =
//! 1 / yᵢ².
//!
//! The weights make errors relative. Times here are between half a microsecond and many
//! milliseconds; without weights, the largest records alone would determine the result.

/// One observation: the factor of each coefficient, and the measured value.
#[derive(Clone, Debug)]
pub(crate) struct Row<const N: usize> {
    pub(crate) factors: [f64; N],
    pub(crate) found: f64,
}

/// Returns the coefficients. A cost can't be negative. So a coefficient that would be below 0 is
/// set to 0, and the others are computed without it.
pub(crate) fn coefficients<const N: usize>(rows: &[Row<N>]) -> [f64; N] {
    let mut is_used = [true; N];
    loop {
        let found = solve(rows, is_used);
        let lowest = (0..N).min_by(|a, b| found[*a].total_cmp(&found[*b]));
        match lowest {
            Some(index) if found[index] < 0.0 => is_used[index] = false,
            _ => return found,
        }
    }
}

/// Returns the root of the mean squared relative error.
pub(crate) fn error<const N: usize>(rows: &[Row<N>], coefficients: &[f64; N]) -> f64 {
    let squares = rows.iter().map(|row| (row.found - at(row, coefficients)).powi(2) / row.found.powi(2));
    (squares.sum::<f64>() / rows.len().max(1) as f64).sqrt()
}

fn at<const N: usize>(row: &Row<N>, coefficients: &[f64; N]) -> f64 {
    row.factors.iter().zip(coefficients).map(|(factor, coefficient)| factor * coefficient).sum()
}

/// Solves the normal equations by elimination. A coefficient that no row contains is 0.
fn solve<const N: usize>(rows: &[Row<N>], is_used: [bool; N]) -> [f64; N] {
    // Factors differ by many orders of magnitude, so each is scaled by its maximum.
    let scale: [f64; N] = std::array::from_fn(|j| {
        rows.iter().map(|row| (row.factors[j] / row.found).abs()).fold(f64::MIN_POSITIVE, f64::max)
    });
    let mut matrix = [[0.0; N]; N];
    let mut right = [0.0; N];
    for row in rows {
        let x: [f64; N] = std::array::from_fn(|j| if is_used[j] { row.factors[j] / row.found / scale[j] } else { 0.0 });
        for i in 0..N {
            right[i] += x[i];
            for j in 0..N {
                matrix[i][j] += x[i] * x[j];
            }
        }
    }
    for i in 0..N {
        let pivot = (i..N).max_by(|a, b| matrix[*a][i].abs().total_cmp(&matrix[*b][i].abs())).unwrap_or(i);
        if matrix[pivot][i].abs() < 1e-12 {
            // The matrix is symmetric: a coefficient without a column has no row either, and is 0.
            matrix[i][i] = 1.0;
            right[i] = 0.0;
            continue;
        }
        matrix.swap(i, pivot);
        right.swap(i, pivot);
        let (row, of_right) = (matrix[i], right[i]);
        for below in i + 1..N {
            let factor = matrix[below][i] / row[i];
            matrix[below] = std::array::from_fn(|j| matrix[below][j] - factor * row[j]);
            right[below] -= factor * of_right;
        }
    }
    let mut found = [0.0; N];
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|j| matrix[i][j] * found[j]).sum();
        found[i] = (right[i] - known) / matrix[i][i];
    }
    std::array::from_fn(|j| found[j] / scale[j])
}
