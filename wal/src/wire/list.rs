//! A list in a message: its length as eight bytes, then the items.
//!
//! The list is decoded item by item. Memory is allocated as items are decoded, not by the claimed
//! length.

use super::LIST_ITEMS_MAX;
use bincode::de::{BorrowDecode, BorrowDecoder, Decode};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};

/// The items of a list; at most [`LIST_ITEMS_MAX`] are decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

/// The number of items for which memory is allocated before the first is decoded.
const ITEMS_AHEAD: usize = 16;

impl<T: Encode> Encode for List<T> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.0.len() as u64).encode(encoder)?;
        self.0.iter().try_for_each(|item| item.encode(encoder))
    }
}

impl<'b, C, T: BorrowDecode<'b, C>> BorrowDecode<'b, C> for List<T> {
    fn borrow_decode<D: BorrowDecoder<'b, Context = C>>(decoder: &mut D) -> Result<List<T>, DecodeError> {
        let count = u64::decode(decoder)?;
        if count > LIST_ITEMS_MAX as u64 {
            return Err(DecodeError::OtherString(format!("a list of {count} items; the limit is {LIST_ITEMS_MAX}")));
        }
        let count = count as usize;
        let mut items = Vec::with_capacity(count.min(ITEMS_AHEAD));
        for _ in 0..count {
            items.push(T::borrow_decode(decoder)?);
        }
        Ok(List(items))
    }
}
