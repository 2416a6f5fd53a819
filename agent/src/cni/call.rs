//! What the runtime asks for: the `CNI_` variables, checked as the reference implementation checks them
//! (<https://github.com/containernetworking/cni/blob/v1.2.3/pkg/skel/skel.go>).
//!
//! The identifiers become part of a file name, so what passes here can hold no `/`, no `:` and no leading dot.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::error::{Error, code};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the specification's own words")]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// One call by the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub verb: Verb,
    /// `CNI_CONTAINERID`; empty for STATUS, GC and VERSION.
    pub container_id: String,
    /// `CNI_IFNAME`; empty for STATUS, GC and VERSION.
    pub ifname: String,
    /// `CNI_PATH`: where delegates are looked for.
    pub path: Vec<PathBuf>,
}

impl Verb {
    /// The verb as `CNI_COMMAND` has it.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
            Verb::Version => "VERSION",
        }
    }

    /// The first version of the specification that has the verb.
    pub fn since(self) -> &'static str {
        match self {
            Verb::Add | Verb::Del | Verb::Version => "0.1.0",
            Verb::Check => "0.4.0",
            Verb::Status | Verb::Gc => "1.1.0",
        }
    }

    /// Whether it is about one attachment of one container.
    fn attachment(self) -> bool {
        matches!(self, Verb::Add | Verb::Del | Verb::Check)
    }

    fn from_name(name: &OsStr) -> Option<Verb> {
        let all = [Verb::Add, Verb::Del, Verb::Check, Verb::Status, Verb::Gc, Verb::Version];
        all.into_iter().find(|verb| name == verb.name())
    }
}

impl Call {
    /// Reads the variables; `None` without a `CNI_COMMAND`.
    pub fn from_env(env: impl Fn(&str) -> Option<OsString>) -> Result<Option<Call>, Error> {
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        let Some(command) = get("CNI_COMMAND") else { return Ok(None) };
        let verb = Verb::from_name(&command).ok_or_else(|| {
            let msg = format!("unknown CNI_COMMAND: {}", command.to_string_lossy());
            Error::new(code::INVALID_ENVIRONMENT, msg)
        })?;
        let missing: Vec<&str> = required(verb).iter().copied().filter(|name| get(name).is_none()).collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(Error::new(code::INVALID_ENVIRONMENT, msg));
        }
        let mut call = Call { verb, container_id: String::new(), ifname: String::new(), path: Vec::new() };
        if verb == Verb::Version {
            return Ok(Some(call));
        }
        call.path = paths(&get("CNI_PATH").unwrap_or_default());
        if verb.attachment() {
            let text = |name| get(name).unwrap_or_default().to_string_lossy().into_owned();
            call.container_id = container_id(text("CNI_CONTAINERID"))?;
            call.ifname = ifname(text("CNI_IFNAME"))?;
        }
        Ok(Some(call))
    }
}

/// The variables that a verb can't do without. DEL must succeed without a namespace: it may be long gone.
fn required(verb: Verb) -> &'static [&'static str] {
    match verb {
        Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
        Verb::Status | Verb::Gc => &["CNI_PATH"],
        Verb::Version => &[],
    }
}

fn paths(list: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(list).filter(|dir| !dir.as_os_str().is_empty()).collect()
}

/// Whether `name` is what the specification allows for a container id and a network's name.
pub fn valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn container_id(id: String) -> Result<String, Error> {
    if valid_name(&id) {
        return Ok(id);
    }
    Err(Error::new(code::INVALID_ENVIRONMENT, "invalid characters in containerID").details(id))
}

/// See `dev_valid_name` in the kernel's net/core/dev.c.
fn ifname(name: String) -> Result<String, Error> {
    let wrong = if name.len() > 15 {
        "interface name is too long; interface name should be less than 16 characters"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        "interface name contains / or : or whitespace characters"
    } else {
        return Ok(name);
    };
    Err(Error::new(code::INVALID_ENVIRONMENT, wrong).details(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc-1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin::/usr/lib/cni"),
    ];

    fn read(changes: &[(&str, &str)]) -> Result<Option<Call>, Error> {
        let env = |name: &str| {
            let found = changes.iter().chain(&ADD).find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Call::from_env(env)
    }

    fn refusal(changes: &[(&str, &str)]) -> String {
        let error = read(changes).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        error.msg
    }

    #[test]
    fn reads_an_add() {
        let call = read(&[]).unwrap().unwrap();
        assert_eq!((call.verb, call.container_id.as_str(), call.ifname.as_str()), (Verb::Add, "abc-1", "eth0"));
        assert_eq!(call.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
    }

    #[test]
    fn del_needs_no_namespace_and_add_does() {
        assert_eq!(read(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]).unwrap().unwrap().verb, Verb::Del);
        let missing = refusal(&[("CNI_NETNS", ""), ("CNI_IFNAME", "")]);
        assert_eq!(missing, "required env variables [CNI_NETNS,CNI_IFNAME] missing");
    }

    #[test]
    fn refuses_names_that_would_leave_the_directory() {
        for id in ["../x", ".hidden", "a/b", "a:b", "a b", "-a", "ä"] {
            assert_eq!(refusal(&[("CNI_CONTAINERID", id)]), "invalid characters in containerID", "{id}");
        }
        for (name, word) in
            [("a/b", "contains"), ("a:b", "contains"), ("..", "is . or .."), ("0123456789abcdef", "long")]
        {
            assert!(refusal(&[("CNI_IFNAME", name)]).contains(word), "{name}");
        }
    }

    #[test]
    fn an_unknown_verb_is_named() {
        assert_eq!(refusal(&[("CNI_COMMAND", "GET")]), "unknown CNI_COMMAND: GET");
    }

    #[test]
    fn status_and_gc_are_about_no_container() {
        for verb in ["STATUS", "GC"] {
            let changes = [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", ""), ("CNI_NETNS", "")];
            assert_eq!(read(&changes).unwrap().unwrap().container_id, "");
        }
    }
}
