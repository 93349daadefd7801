//! Limits: the sizes of entries and stores, full devices, reuse of pages, and address space.

mod address_space;
mod full_store;
mod limits;
mod reclaim;
