//! JSON objects, read as Go's `encoding/json` reads them into a struct.
//!
//! Names match in any case, the last one of a name wins, `null` counts as absent, what nobody asks for is ignored
//! (<https://pkg.go.dev/encoding/json#Unmarshal>). What the names mean is not known here.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// The members of an object, in the order of the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Object<V = Value>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Object<V> {
    /// Reads a text that must be one object. The error says where the text goes wrong.
    pub(crate) fn parse(text: &'de [u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }
}

impl Object<&RawValue> {
    /// The text of the value that Go would leave in the field of this name.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.last(name, |value| value.get() == "null").map(|value| value.get())
    }
}

impl<V> Object<V> {
    fn last(&self, name: &str, is_null: impl Fn(&V) -> bool) -> Option<&V> {
        let mut members = self.0.iter().rev();
        members.find(|(other, value)| other.eq_ignore_ascii_case(name) && !is_null(value)).map(|(_, value)| value)
    }
}

impl Object {
    /// The object inside another one; `None` where the value is something else.
    pub(crate) fn nested(value: &Value) -> Option<Self> {
        let members = value.as_object()?;
        Some(Self(members.iter().map(|(name, value)| (name.clone(), value.clone())).collect()))
    }

    /// The value that Go would leave in the field of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.last(name, Value::is_null)
    }

    /// The members that none of these names asks for.
    pub(crate) fn into_others(self, names: &[&str]) -> Vec<(String, Value)> {
        let asked = |name: &str| names.iter().any(|other| other.eq_ignore_ascii_case(name));
        self.0.into_iter().filter(|(name, _)| !asked(name)).collect()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Object<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Members<V> {
            type Value = Object<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<V>, A::Error> {
                let mut members = Vec::with_capacity(6);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        let object: Object = Object::parse(br#"{"vni": 1, "VNI": 2, "Vni": null, "Other": 3}"#).unwrap();
        assert_eq!(object.get("VNI"), Some(&Value::from(2)));
        assert_eq!(object.get("MTU"), None);
        assert_eq!(object.into_others(&["VNI"]), vec![("Other".to_owned(), Value::from(3))]);
    }

    #[test]
    fn only_an_object_will_do() {
        for bad in ["", "[]", "null", "{", "{} x", "\"a\"", "\u{feff}{}"] {
            assert!(Object::<Value>::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
