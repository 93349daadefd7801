//! The protocols of the shared region under the model checker loom.

mod model;

mod cell;
mod deadline;
mod handover;
mod histogram;
mod lock;
mod pins;
mod slots;
