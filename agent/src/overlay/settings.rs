//! Settings of the network config as its JSON has them, with errors that name key, value and what was expected. What a key
//! means is not known here.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::json::Object;

/// Why a network config can't be used. Mending the config is the only remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not an object.
    #[error("the network config is not a JSON object: {0}")]
    NotJson(String),
    /// A key that has no default is absent.
    #[error("{key} is missing: expected {expected}")]
    Missing {
        /// The key.
        key: String,
        /// What it should have been.
        expected: String,
    },
    /// The value of a key won't do.
    #[error("{key}: {value} {problem}: expected {expected}")]
    Bad {
        /// The key.
        key: String,
        /// Its value, as JSON writes it, strings without their quotes.
        value: String,
        /// What is wrong with it, as in `does not fit Network 10.5.0.0/16`.
        problem: String,
        /// What it should have been.
        expected: String,
    },
}

/// An integer of the range; 0, which is Go's "not given", and an absent key are `None`.
pub(super) fn integer(
    object: &Object,
    key: &str,
    problem: &str,
    expected: &str,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, ConfigError> {
    let Some(value) = object.get(key) else { return Ok(None) };
    match value.as_u64() {
        Some(0) => Ok(None),
        Some(n) if u32::try_from(n).is_ok_and(|n| range.contains(&n)) => Ok(Some(n as u32)),
        _ => Err(ConfigError::Bad {
            key: key.to_owned(),
            value: shown(value),
            problem: if value.is_number() { problem.to_owned() } else { "is not a number".to_owned() },
            expected: expected.to_owned(),
        }),
    }
}

pub(super) fn flag(object: &Object, key: &str, default: bool) -> Result<bool, ConfigError> {
    let Some(value) = object.get(key) else { return Ok(default) };
    value.as_bool().ok_or_else(|| bad(key, &shown(value), "is not a boolean", "true or false"))
}

pub(super) fn in_backend(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Bad { key, value, problem, expected } => {
            ConfigError::Bad { key: format!("Backend.{key}"), value, problem, expected }
        }
        other => other,
    }
}

pub(super) fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if text.is_empty() { "\"\"".to_owned() } else { super::shown(&text) }
}

pub(super) fn bad(key: &str, value: &str, problem: &str, expected: &str) -> ConfigError {
    ConfigError::Bad {
        key: key.to_owned(),
        value: value.to_owned(),
        problem: problem.to_owned(),
        expected: expected.to_owned(),
    }
}
