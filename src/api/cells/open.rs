//! The calls of a store that open, list and drop its cells and counters.

use crate::Result;
use crate::api::cells;
use crate::api::cells::CellInfo;
use crate::api::cells::cell::Cell;
use crate::api::cells::counter::Counter;
use crate::api::store::Store;
use crate::shared::cells::CellKind;

impl Store {
    /// Returns the cell of this name, of `size` bytes (1 to 4,096). If there is none, creates it
    /// with all bytes 0, as a transaction at the store's default durability.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let imu = store.cell("imu", 16)?;
    /// let version = imu.store(b"roll pitch  yaw ")?; // visible to all processes, in place
    /// let mut reading = [0; 16];
    /// assert_eq!(imu.load(&mut reading)?, version);
    /// imu.load_version(version, &mut reading)?; // this very value, or `Stale`
    /// imu.store_durable(&[1; 16])?; // survives a power loss
    /// # drop(imu);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::OtherCell`](crate::Error::OtherCell) if it has another size or is a counter.
    /// [`Error::Limit`](crate::Error::Limit) for the size, the name (255 bytes) and the number of
    /// cells and counters (65,536). [`Error::NoCell`](crate::Error::NoCell) if the store was opened
    /// read-only and there is none. Those of a commit.
    pub fn cell(&self, name: &str, size: usize) -> Result<Cell> {
        let location = cells::open(self, name, CellKind::Cell { len: size })?;
        Ok(Cell::new(self.clone(), location, name))
    }

    /// Returns a cell as [`Store::cell`] does, for values of a plain type: one without padding, for
    /// which any bytes are a value. All processes must interpret those bytes in the same way.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
    /// #[repr(C)]
    /// struct Pose {
    ///     x: f64,
    ///     y: f64,
    /// }
    ///
    /// let pose = store.cell_of::<Pose>("pose")?;
    /// let version = pose.store(&Pose { x: 1.0, y: 2.0 })?;
    /// assert_eq!(pose.load()?, (Pose { x: 1.0, y: 2.0 }, version));
    /// # drop(pose);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Store::cell`].
    pub fn cell_of<T: bytemuck::Pod>(&self, name: &str) -> Result<Cell<T>> {
        let location = cells::open(self, name, CellKind::Cell { len: size_of::<T>() })?;
        Ok(Cell::new(self.clone(), location, name))
    }

    /// Returns the cell of this name, whatever its size; `None` if there is none, or a counter.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt); [`Error::Forked`](crate::Error::Forked).
    pub fn find_cell(&self, name: &str) -> Result<Option<Cell>> {
        let location = cells::find(self, name)?.filter(|location| location.kind() != CellKind::Counter);
        Ok(location.map(|location| Cell::new(self.clone(), location, name)))
    }

    /// Returns the counter of this name. If there is none, creates it at 0, as a transaction at the
    /// store's default durability.
    ///
    /// # Errors
    /// Those of [`Store::cell`].
    pub fn counter(&self, name: &str) -> Result<Counter> {
        let location = cells::open(self, name, CellKind::Counter)?;
        Ok(Counter::new(self.clone(), location, name))
    }

    /// Returns all cells and counters, by name.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt); [`Error::Forked`](crate::Error::Forked).
    pub fn cells(&self) -> Result<Vec<CellInfo>> {
        cells::list(self)
    }

    /// Drops the cell or counter of this name, as a transaction at the store's default durability.
    /// Returns whether it existed. From then on its handles return
    /// [`Error::NoCell`](crate::Error::NoCell), also if another one of the same name is created.
    ///
    /// The entry of a dropped counter is reused only when all processes that had the store open at
    /// the drop have closed it. A process that keeps creating and dropping counters therefore
    /// reaches the limit of their number.
    ///
    /// # Errors
    /// Those of [`Store::begin`] and [`WriteTxn::commit`](crate::WriteTxn::commit).
    pub fn drop_cell(&self, name: &str) -> Result<bool> {
        cells::drop_cell(self, name)
    }
}
