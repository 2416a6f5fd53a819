//! The CNI error object, and the codes that the specification gives
//! (<https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md#error>).

use serde::{Deserialize, Serialize};

use crate::overlay::Shown;

/// Codes of errors. Below 100 the specification's own, 100 and above the plugin's.
pub mod code {
    /// The configuration asks for a CNI version that we don't speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The container is not known: nothing was added under this name.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_` variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed, or a program can't be started.
    pub const IO: u32 = 5;
    /// Something is not the JSON it should be.
    pub const DECODE: u32 = 6;
    /// The network configuration is wrong; nothing but an edit mends it.
    pub const INVALID_CONFIG: u32 = 7;
    /// It may work the next time.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no ADD would succeed now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The delegate failed and left no error object.
    pub const DELEGATE_FAILED: u32 = 100;
    /// The pod belongs to a subnet that this node no longer has.
    pub const SUBNET_CHANGED: u32 = 101;
    /// A bug of ours. The number is that of the reference implementation (`ErrInternal` in its pkg/types).
    pub const INTERNAL: u32 = 999;
}

/// An error as the runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// One of [`code`], or the delegate's own.
    #[serde(default)]
    pub code: u32,
    /// One line: what failed.
    pub msg: String,
    /// What an operator can do, or more of what happened. May be empty.
    #[serde(default)]
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with details.
    pub fn details(self, details: impl Into<String>) -> Error {
        Error { details: details.into(), ..self }
    }

    /// The message with the details.
    pub(crate) fn in_full(&self) -> String {
        if self.details.is_empty() { self.msg.clone() } else { format!("{} ({})", self.msg, self.details) }
    }

    /// The object for standard output.
    pub fn to_json(&self, cni_version: &str) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Object<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            details: &'a str,
        }
        let object = Object { cni_version, code: self.code, msg: &self.msg, details: &self.details };
        // Strings and a number can't fail to serialise.
        let mut text = serde_json::to_vec_pretty(&object).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// An I/O error in the words that flannel's users know: Go's, "no such file or directory", with no number behind.
pub(crate) fn os_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// The beginning of what a program printed, for a message: on one line, not endless, and with nothing in it that a
/// terminal obeys.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 500;
    let words = bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect::<Vec<_>>();
    Shown::up_to(LONGEST, &words.join(&b' ')).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_all_four_keys() {
        let object = Error::new(code::TRY_AGAIN, "no \"lease\"").to_json("1.0.0");
        let object: serde_json::Value = serde_json::from_slice(&object).unwrap();
        let wanted = serde_json::json!({"cniVersion": "1.0.0", "code": 11, "msg": "no \"lease\"", "details": ""});
        assert_eq!(object, wanted);
    }

    #[test]
    fn speaks_go() {
        let error = std::io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(os_text(&error), "no such file or directory");
        assert_eq!(os_text(&std::io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt(b"  a\n b\xff \x1b[2J"), "a b\\xff \\u{1b}[2J");
        assert_eq!(excerpt(&[b'x'; 5000]), format!("{}... (5,000 bytes)", "x".repeat(500)));
    }
}
