//! The network configuration on standard input.
//!
//! Values that are only handed on stay the text they came as, so that no number, no key order and no unknown key
//! changes on the way to the delegate. Keys are found whatever their case, as Go's decoder finds them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::call::{Verb, valid_name};
use super::error::{Error, code};

/// The versions of the specification that the plugin speaks, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A JSON object whose values are kept as they were written. In the order of its keys, as Go writes maps.
pub type Object = BTreeMap<String, Box<RawValue>>;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// See the decision in [`super`].
const DELEGATE_TIMEOUT: Duration = Duration::from_secs(110);

/// What `delegateTimeoutSeconds` may be.
const TIMEOUTS: RangeInclusive<u64> = 1..=3600;

/// The configuration of one network.
#[derive(Debug, Clone)]
pub struct NetConf {
    /// `name`.
    pub name: String,
    /// `cniVersion` as it was given; none means 0.1.0.
    pub cni_version: Option<String>,
    /// `subnetFile`.
    pub subnet_file: PathBuf,
    /// `dataDir`.
    pub data_dir: PathBuf,
    /// `delegate`; empty if not given.
    pub delegate: Object,
    /// `ipam`; empty if not given.
    pub ipam: Object,
    /// `runtimeConfig`: what the runtime passes for this container.
    pub runtime_config: Option<Box<RawValue>>,
    /// `prevResult`: what ADD returned, for CHECK and DEL.
    pub prev_result: Option<Box<RawValue>>,
    /// `cni.dev/valid-attachments`, for GC.
    pub valid_attachments: Option<Box<RawValue>>,
    /// `delegateTimeoutSeconds` (Twill's own): how long a delegate may take.
    pub delegate_timeout: Duration,
}

impl NetConf {
    /// Reads and checks a configuration. What only some verbs need is checked where it is used.
    ///
    /// DEL takes only the name and the directory from here, so it goes on with a default for anything else that can't be
    /// used: the ADD that failed by it has left nothing, and a pod that can't be deleted comes back to us for ever.
    pub fn parse(json: &[u8], verb: Verb) -> Result<NetConf, Error> {
        let object: Object = serde_json::from_slice(json).map_err(|e| no_conf(e.to_string()))?;
        let name: String = field(&object, "name")?.unwrap_or_default();
        if name.is_empty() {
            return Err(Error::new(code::INVALID_CONFIG, "missing network name"));
        }
        if !valid_name(&name) {
            return Err(Error::new(code::INVALID_CONFIG, "invalid characters found in network name").details(name));
        }
        let needs = Needs { all: verb != Verb::Del };
        Ok(NetConf {
            name,
            cni_version: needs.or(None, version(&object))?,
            subnet_file: needs.or(SUBNET_FILE.into(), path(&object, "subnetFile", SUBNET_FILE))?,
            data_dir: path(&object, "dataDir", DATA_DIR)?,
            delegate: needs.or(None, field(&object, "delegate"))?.unwrap_or_default(),
            ipam: needs.or(None, field(&object, "ipam"))?.unwrap_or_default(),
            runtime_config: given(&object, "runtimeConfig").map(ToOwned::to_owned),
            prev_result: given(&object, "prevResult").map(ToOwned::to_owned),
            // Not by `given`: null is Go's empty list, and that is another thing than no list.
            valid_attachments: find(&object, "cni.dev/valid-attachments").map(ToOwned::to_owned),
            delegate_timeout: needs.or(DELEGATE_TIMEOUT, timeout(&object))?,
        })
    }

    /// Whether the configuration is of this version of the specification or a later one.
    pub fn at_least(&self, version: &str) -> bool {
        let age = |v: &str| SUPPORTED.iter().position(|s| *s == v);
        age(self.cni_version.as_deref().unwrap_or(SUPPORTED[0])) >= age(version)
    }

    /// The attachments that GC must spare, as (container id, interface name).
    pub fn valid_attachments(&self) -> Result<BTreeSet<(String, String)>, Error> {
        #[derive(Deserialize)]
        struct Attachment {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let list = self.valid_attachments.as_ref().ok_or_else(|| {
            let msg = "required cni.dev/valid-attachments missing";
            Error::new(code::INVALID_CONFIG, msg).details("without it everything would be taken for stale")
        })?;
        let list: Option<Vec<Attachment>> = serde_json::from_str(list.get())
            .map_err(|e| Error::new(code::DECODE, format!("can't read cni.dev/valid-attachments: {e}")))?;
        Ok(list.unwrap_or_default().into_iter().map(|a| (a.container_id, a.ifname)).collect())
    }
}

/// What a verb needs of a configuration.
struct Needs {
    all: bool,
}

impl Needs {
    /// The value, or this one where a wrong one doesn't matter.
    fn or<T>(&self, value: T, read: Result<T, Error>) -> Result<T, Error> {
        if self.all { read } else { Ok(read.unwrap_or(value)) }
    }
}

fn version(object: &Object) -> Result<Option<String>, Error> {
    let given: Option<String> = field(object, "cniVersion")?.filter(|v: &String| !v.is_empty());
    match given {
        Some(wanted) if !SUPPORTED.contains(&wanted.as_str()) => {
            let details = format!("config is \"{wanted}\", plugin supports {SUPPORTED:?}");
            Err(Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions").details(details))
        }
        given => Ok(given),
    }
}

fn path(object: &Object, key: &str, default: &str) -> Result<PathBuf, Error> {
    let given = field::<String>(object, key)?.filter(|p| !p.is_empty());
    Ok(given.map_or_else(|| PathBuf::from(default), PathBuf::from))
}

fn timeout(object: &Object) -> Result<Duration, Error> {
    const KEY: &str = "delegateTimeoutSeconds";
    let Some(value) = given(object, KEY) else { return Ok(DELEGATE_TIMEOUT) };
    let seconds = serde_json::from_str(value.get()).ok().filter(|seconds| TIMEOUTS.contains(seconds));
    let wrong = || {
        let (least, most) = (TIMEOUTS.start(), TIMEOUTS.end());
        let msg = format!("'{KEY}' is {}, expected a whole number of seconds from {least} to {most}", value.get());
        Error::new(code::INVALID_CONFIG, msg)
    };
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

/// The version for an error object: the configuration's if we speak it, else our newest.
pub fn spoken_version(json: &[u8]) -> &'static str {
    let wanted = serde_json::from_slice(json).ok().and_then(|object| field::<String>(&object, "cniVersion").ok()?);
    let known = SUPPORTED.iter().find(|v| wanted.as_deref().is_some_and(|w| w == **v));
    known.unwrap_or(&SUPPORTED[SUPPORTED.len() - 1])
}

/// A value by its key, exactly written or in another case.
pub(crate) fn find<'a>(object: &'a Object, key: &str) -> Option<&'a RawValue> {
    let other_case = || object.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, value)| value);
    object.get(key).or_else(other_case).map(|value| &**value)
}

/// A value that is given and not null.
fn given<'a>(object: &'a Object, key: &str) -> Option<&'a RawValue> {
    find(object, key).filter(|value| value.get() != "null")
}

fn field<T: DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>, Error> {
    let Some(value) = given(object, key) else { return Ok(None) };
    serde_json::from_str(value.get()).map(Some).map_err(|e| no_conf(format!("'{key}': {e}")))
}

fn no_conf(why: String) -> Error {
    Error::new(code::DECODE, format!("loadFlannelNetConf failed: failed to load netconf: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_flannels_defaults() {
        let conf = NetConf::parse(br#"{"name":"cbr0","type":"flannel"}"#, Verb::Add).unwrap();
        assert_eq!(conf.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
        assert_eq!(conf.data_dir.to_str(), Some("/var/lib/cni/flannel"));
        assert!(conf.delegate.is_empty() && conf.ipam.is_empty() && conf.cni_version.is_none());
        assert!(conf.at_least("0.1.0") && !conf.at_least("0.4.0"));
    }

    #[test]
    fn finds_keys_in_any_case_and_takes_null_for_nothing() {
        let conf =
            NetConf::parse(br#"{"Name":"n","SUBNETFILE":"/a","datadir":"","delegate":null}"#, Verb::Add).unwrap();
        assert_eq!((conf.name.as_str(), conf.subnet_file.to_str()), ("n", Some("/a")));
        assert_eq!(conf.data_dir.to_str(), Some(DATA_DIR));
    }

    #[test]
    fn refuses_what_it_cannot_use_and_says_where() {
        for (json, code, word) in [
            ("rubbish", code::DECODE, "loadFlannelNetConf failed: failed to load netconf"),
            ("[]", code::DECODE, "failed to load netconf"),
            ("{}", code::INVALID_CONFIG, "missing network name"),
            (r#"{"name":"a/b"}"#, code::INVALID_CONFIG, "invalid characters found in network name"),
            (r#"{"name":7}"#, code::DECODE, "'name'"),
            (r#"{"name":"n","delegate":"bridge"}"#, code::DECODE, "'delegate'"),
            (r#"{"name":"n","ipam":[]}"#, code::DECODE, "'ipam'"),
            (
                r#"{"name":"n","delegateTimeoutSeconds":0}"#,
                code::INVALID_CONFIG,
                "'delegateTimeoutSeconds' is 0, expected",
            ),
            (r#"{"name":"n","delegateTimeoutSeconds":3601}"#, code::INVALID_CONFIG, "3601, expected a whole number"),
            (r#"{"name":"n","delegateTimeoutSeconds":"9"}"#, code::INVALID_CONFIG, "'delegateTimeoutSeconds' is \"9\""),
            (r#"{"name":"n","delegateTimeoutSeconds":1.5}"#, code::INVALID_CONFIG, "'delegateTimeoutSeconds' is 1.5"),
            (r#"{"name":"n","cniVersion":"2.0.0"}"#, code::INCOMPATIBLE_VERSION, "incompatible CNI versions"),
        ] {
            let error = NetConf::parse(json.as_bytes(), Verb::Add).unwrap_err();
            assert_eq!(error.code, code, "{json}: {error:?}");
            assert!(error.msg.contains(word), "{json}: {error:?}");
        }
    }

    #[test]
    fn del_needs_the_name_and_the_directory_alone() {
        for wrong in [
            r#""delegate":"bridge""#,
            r#""ipam":[]"#,
            r#""subnetFile":7"#,
            r#""cniVersion":7"#,
            r#""cniVersion":"9.9.9""#,
            r#""delegateTimeoutSeconds":0"#,
        ] {
            let json = format!(r#"{{"name":"n","dataDir":"/d",{wrong}}}"#);
            assert!(NetConf::parse(json.as_bytes(), Verb::Add).is_err(), "{wrong}");
            let conf = NetConf::parse(json.as_bytes(), Verb::Del).unwrap();
            assert_eq!((conf.data_dir.to_str(), conf.cni_version), (Some("/d"), None), "{wrong}");
            assert_eq!((conf.subnet_file.to_str(), conf.delegate_timeout), (Some(SUBNET_FILE), DELEGATE_TIMEOUT));
        }
        for wrong in ["rubbish", "[]", r#"{"name":""}"#, r#"{"name":"a/b"}"#, r#"{"name":"n","dataDir":7}"#] {
            assert!(NetConf::parse(wrong.as_bytes(), Verb::Del).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_list_of_attachments_is_not_an_empty_one() {
        let valid = |json: &str| NetConf::parse(json.as_bytes(), Verb::Add).unwrap().valid_attachments();
        assert_eq!(valid(r#"{"name":"n"}"#).unwrap_err().code, code::INVALID_CONFIG);
        assert!(valid(r#"{"name":"n","cni.dev/valid-attachments":null}"#).unwrap().is_empty());
        let one = r#"{"name":"n","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}"#;
        assert_eq!(valid(one).unwrap(), BTreeSet::from([("c".to_string(), "eth0".to_string())]));
        assert_eq!(valid(r#"{"name":"n","cni.dev/valid-attachments":[1]}"#).unwrap_err().code, code::DECODE);
    }
}
