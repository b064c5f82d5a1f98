//! Values as bytes: variable-length numbers, lengths before lists, fields in order and nothing else.
//!
//! What lies on disk is versioned as a whole by the store's FORMAT; within a version a field is never
//! added, moved or removed. Checksums are those of the group or record that the bytes lie in.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use bytes::Bytes;

use crate::error::{Error, Result};

/// A value that can be written to the log and read back.
pub(super) trait Codec: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Input<'_>) -> Result<Self>;
}

/// Bytes that are being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or_else(short)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn length(&mut self) -> Result<usize> {
        usize::try_from(u64::take(self)?).map_err(|_| short())
    }
}

fn short() -> Error {
    Error::corrupt("a record of the journal ends too early")
}

fn unknown(what: &str) -> Error {
    Error::corrupt(format!("a record of the journal has an unknown {what}"))
}

pub(super) fn unknown_kind() -> Error {
    unknown("kind")
}

/// A whole value, with nothing behind it.
pub(super) fn whole<T: Codec>(bytes: &[u8]) -> Result<T> {
    let mut input = Input::new(bytes);
    let value = T::take(&mut input)?;
    if !input.is_empty() {
        return Err(unknown("end"));
    }
    Ok(value)
}

/// The items of a whole list, each with where it lies.
pub(super) fn items<T: Codec>(bytes: &[u8]) -> Result<Vec<(T, Range<usize>)>> {
    let mut input = Input::new(bytes);
    let count = input.length()?;
    let item = |_| {
        let from = bytes.len() - input.0.len();
        let item = T::take(&mut input)?;
        Ok((item, from..bytes.len() - input.0.len()))
    };
    let items = (0..count).map(item).collect::<Result<_>>()?;
    if !input.is_empty() {
        return Err(unknown("end"));
    }
    Ok(items)
}

impl Codec for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        let mut value = *self;
        while value >= 0x80 {
            #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        #[expect(clippy::cast_possible_truncation, reason = "less than 0x80")]
        out.push(value as u8);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = from.bytes(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(unknown("number"))
    }
}

impl Codec for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        u64::from(*self).put(out);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        Self::try_from(u64::take(from)?).map_err(|_| unknown("number"))
    }
}

impl Codec for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        Ok(from.bytes(1)?[0])
    }
}

impl Codec for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(unknown("yes or no")),
        }
    }
}

impl Codec for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Input<'_>) -> Result<Self> {
        Ok(())
    }
}

impl<const N: usize> Codec for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        let mut value = [0; N];
        value.copy_from_slice(from.bytes(N)?);
        Ok(value)
    }
}

impl Codec for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        let length = from.length()?;
        Ok(Self::copy_from_slice(from.bytes(length)?))
    }
}

impl Codec for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        let length = from.length()?;
        Self::from_utf8(from.bytes(length)?.to_vec()).map_err(|_| unknown("text"))
    }
}

impl<T: Codec> Codec for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put(self, out);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        T::take(from).map(Self::new)
    }
}

impl<T: Codec> Codec for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

impl<A: Codec, B: Codec> Codec for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

/// Collections: how many, then each.
macro_rules! collection {
    ($([$($generics:tt)*] $collection:ty, $item:ty, $pattern:pat => $($part:ident)*;)*) => {$(
        impl<$($generics)*> Codec for $collection {
            fn put(&self, out: &mut Vec<u8>) {
                (self.len() as u64).put(out);
                for $pattern in self {
                    $($part.put(out);)*
                }
            }

            fn take(from: &mut Input<'_>) -> Result<Self> {
                let count = from.length()?;
                (0..count).map(|_| <$item>::take(from)).collect()
            }
        }
    )*};
}

collection! {
    [T: Codec] Vec<T>, T, item => item;
    [T: Codec + Ord] BTreeSet<T>, T, item => item;
    [K: Codec + Ord, V: Codec] BTreeMap<K, V>, (K, V), (key, value) => key value;
}

/// A struct that is written field by field.
macro_rules! record {
    ($(
        $(#[$meta:meta])*
        struct $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(in crate::queue::journal) struct $name {
            $($(#[$doc])* pub(in crate::queue::journal) $field: $type,)*
        }

        impl $crate::queue::journal::codec::Codec for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::queue::journal::codec::Codec::put(&self.$field, out);)*
            }

            fn take(
                from: &mut $crate::queue::journal::codec::Input<'_>,
            ) -> $crate::error::Result<Self> {
                Ok(Self {
                    $($field: $crate::queue::journal::codec::Codec::take(from)?,)*
                })
            }
        }
    )*};
}

/// An enum whose variants hold one record each, told apart by a number that is never reused.
macro_rules! choice {
    ($(
        $(#[$meta:meta])*
        enum $name:ident { $($(#[$doc:meta])* $variant:ident($type:ty) = $number:literal,)* }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(in crate::queue::journal) enum $name {
            $($(#[$doc])* $variant($type),)*
        }

        impl $crate::queue::journal::codec::Codec for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(record) => {
                        out.push($number);
                        $crate::queue::journal::codec::Codec::put(record, out);
                    })*
                }
            }

            fn take(
                from: &mut $crate::queue::journal::codec::Input<'_>,
            ) -> $crate::error::Result<Self> {
                match <u8 as $crate::queue::journal::codec::Codec>::take(from)? {
                    $($number => Ok(Self::$variant(
                        $crate::queue::journal::codec::Codec::take(from)?,
                    )),)*
                    _ => Err($crate::queue::journal::codec::unknown_kind()),
                }
            }
        }
    )*};
}

pub(super) use {choice, record};

#[cfg(test)]
mod tests {
    use super::*;

    record! {
        struct Sample {
            number: u64,
            small: u32,
            flag: bool,
            text: String,
            bytes: Bytes,
            list: Vec<(u64, Option<u32>)>,
            map: BTreeMap<u64, String>,
            digest: [u8; 4],
        }
    }

    fn sample() -> Sample {
        Sample {
            number: u64::MAX,
            small: 300,
            flag: true,
            text: "ü".into(),
            bytes: Bytes::from_static(b"\0\xff"),
            list: vec![(1, None), (u64::MAX, Some(u32::MAX))],
            map: BTreeMap::from([(7, String::new())]),
            digest: *b"abcd",
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let mut out = Vec::new();
        sample().put(&mut out);
        assert_eq!(whole::<Sample>(&out).unwrap(), sample());
    }

    #[test]
    fn a_record_that_is_cut_or_too_long_is_corrupt() {
        let mut out = Vec::new();
        sample().put(&mut out);
        for end in 0..out.len() {
            assert!(whole::<Sample>(&out[..end]).is_err(), "{end}");
        }
        out.push(0);
        assert!(whole::<Sample>(&out).is_err());
    }
}
