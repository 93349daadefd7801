//! Cells and counters by message. The access rules for their names are those for keyspaces.

use crate::api::cells;
use crate::server::answer::{Answer, Session, cut_name, refuse_unless};
use crate::server::policy::Rights;
use crate::shared::cells::CellKind;
use crate::{Cell, Error, Result, Version};
use untorn_wal::wire::Reply;

impl<'s> Session<'s> {
    pub(super) fn cell_load(&self, rights: &Rights<'_>, name: &str, version: Option<u64>) -> Result<Answer<'s>> {
        refuse_unless(rights.may_read(name), "reading", "cell", name)?;
        let cell = self.find(name)?.ok_or_else(|| Error::NoCell { name: cut_name(name) })?;
        let mut value = vec![0; cell.size()];
        let version = match version.map(Version::from_u64) {
            Some(version) => cell.load_version(version, &mut value).map(|()| version)?,
            None => cell.load(&mut value)?,
        };
        Answer::small(&Reply::Cell { version: version.as_u64(), value: &value })
    }

    pub(super) fn cell_store(
        &self,
        rights: &Rights<'_>,
        name: &str,
        value: &[u8],
        is_durable: bool,
    ) -> Result<Answer<'s>> {
        refuse_unless(rights.may_write(name), "writing", "cell", name)?;
        let cell = match self.find(name)? {
            Some(cell) => cell,
            None => self.store.cell(name, value.len())?,
        };
        let version = if is_durable { cell.store_durable(value)? } else { cell.store(value)? };
        Answer::small(&Reply::Cell { version: version.as_u64(), value: &[] })
    }

    pub(super) fn counter_add(&self, rights: &Rights<'_>, name: &str, amount: u64) -> Result<Answer<'s>> {
        refuse_unless(rights.may_write(name), "writing", "counter", name)?;
        self.store.counter(name)?.add(amount)?;
        Answer::small(&Reply::Done)
    }

    pub(super) fn counter_get(&self, rights: &Rights<'_>, name: &str) -> Result<Answer<'s>> {
        refuse_unless(rights.may_read(name), "reading", "counter", name)?;
        // A request that only reads creates no counter.
        let value = match cells::find(&self.store, name)? {
            Some(location) if location.kind() == CellKind::Counter => self.store.counter(name)?.get()?,
            Some(_) => return Err(Error::NoCell { name: cut_name(name) }),
            None => 0,
        };
        Answer::small(&Reply::Count(value))
    }

    fn find(&self, name: &str) -> Result<Option<Cell>> {
        self.store.find_cell(name)
    }
}
