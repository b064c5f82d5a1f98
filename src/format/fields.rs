//! A JSON object whose fields keep their order and their exact text.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::value::RawValue;

/// The fields of a JSON object in their order, duplicates included, each value exactly as written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The JSON of a field; that of the first one of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let field = self.0.iter().find(|(other, _)| other == name)?;
        Some(field.1.get())
    }

    /// Takes a field out; the first one of this name.
    pub(crate) fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1)
    }

    /// One more field, at the end.
    pub(crate) fn with(mut self, name: &str, value: Box<RawValue>) -> Self {
        self.0.push((name.to_owned(), value));
        self
    }

    /// A name that stands there more than once.
    pub(crate) fn named_twice(&self) -> Option<&str> {
        let mut seen = HashSet::with_capacity(self.0.len());
        let names = self.0.iter().map(|(name, _)| name.as_str());
        names.into_iter().find(|name| !seen.insert(*name))
    }

    /// These fields behind those of `under` that have other names.
    pub(crate) fn over(self, under: &Self) -> Self {
        let own: HashSet<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        let under = under.0.iter();
        let mut merged: Vec<_> = under
            .filter(|(name, _)| !own.contains(name.as_str()))
            .cloned()
            .collect();
        merged.extend(self.0);
        Self(merged)
    }

    /// Appends the object, on one line: a string can't hold a raw line break, so those of valid JSON
    /// are white space.
    pub(crate) fn write(&self, line: &mut Vec<u8>) {
        line.push(b'{');
        for (index, (name, value)) in self.0.iter().enumerate() {
            if index > 0 {
                line.push(b',');
            }
            write_string(name, line);
            line.push(b':');
            write_flat(value.get(), line);
        }
        line.push(b'}');
    }
}

/// Appends a text as a JSON string.
pub(crate) fn write_string(text: &str, line: &mut Vec<u8>) {
    line.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
}

/// Appends JSON without its line breaks.
pub(crate) fn write_flat(json: &str, line: &mut Vec<u8>) {
    let flat = |byte| match byte {
        b'\n' | b'\r' => b' ',
        _ => byte,
    };
    line.extend(json.bytes().map(flat));
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        let view = |fields: &Self| -> Vec<(String, String)> {
            let pair =
                |(name, value): &(String, Box<RawValue>)| (name.clone(), value.get().to_owned());
            fields.0.iter().map(pair).collect()
        };
        view(self) == view(other)
    }
}

impl Eq for Fields {}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}
