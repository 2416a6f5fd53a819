//! `twill docker-opts`: the node's subnet as Docker's options, for hosts whose containers get their network from Docker
//! and not from CNI.
//!
//! Options and output are those of flannel's mk-docker-opts.sh
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/dist/mk-docker-opts.sh>): variables for Docker's unit. Beside it the same
//! settings can go into Docker's `daemon.json`, which needs no variable in the unit. Knows `subnet.env` by its reader only.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::cli;
use crate::cni::subnet::{self, SubnetEnv};
use crate::files::{self, Form};
use crate::handoff::host_address;
use crate::out;

/// Between two looks at a `subnet.env` that is not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// More than any configuration of Docker's has, in bytes.
const LONGEST_DAEMON_JSON: u64 = 4 << 20;

/// How the names of the variables begin that hold one option each.
const OPTION: &str = "DOCKER_OPT_";

/// The command's flags; the short ones are flannel's.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The daemon's subnet.env.
    #[arg(short = 'f', value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// The file to write the variables to.
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    pub docker_env: PathBuf,
    /// Write each option as a variable of its own, as in DOCKER_OPT_MTU="--mtu=1450". Without -i and -c both are written.
    #[arg(short = 'i')]
    pub individual: bool,
    /// Write all options as one variable.
    #[arg(short = 'c')]
    pub combined: bool,
    /// The name of that variable. What the environment has under this name goes before the options.
    #[arg(short = 'k', value_name = "NAME", default_value = "DOCKER_OPTS", value_parser = variable)]
    pub key: String,
    /// Leave --ip-masq out.
    #[arg(short = 'm')]
    pub no_ip_masq: bool,
    /// Add the IPv6 subnet, which flannel's script leaves out.
    #[arg(long)]
    pub ipv6: bool,
    /// Put the settings into this configuration file of Docker's, whose other settings stay, and write no variables.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["docker_env", "individual", "combined", "key"])]
    pub daemon_json: Option<PathBuf>,
    /// Wait until there is a subnet, for 60s or as long as given here: --wait=5m. Ends with 1 if there is none by then.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s",
          value_parser = cli::duration)]
    pub wait: Option<Duration>,
}

/// Writes the file that the options ask for.
///
/// # Errors
/// A `subnet.env` that is not there or not whole (flannel's script takes it for empty) once the wait is over, and a file that
/// can't be written.
pub fn run(options: &Options) -> Result<()> {
    let env = match options.wait {
        Some(longest) => wait_for_subnet(&options.subnet_file, longest)?,
        None => subnet::read(&options.subnet_file).map_err(|error| anyhow!("{}", error.msg))?,
    };
    let settings = Settings::of(&env, options)?;
    if let Some(file) = &options.daemon_json {
        // Not through a link: the file behind it is another's, and the link would become a file of its own.
        let text = match files::read_unlinked(file, LONGEST_DAEMON_JSON) {
            Ok(text) => String::from_utf8(text).with_context(|| format!("--daemon-json: read {}", file.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("--daemon-json: read {}", file.display())),
        };
        let changed = settings.merge(&text).with_context(|| format!("--daemon-json {}", file.display()))?;
        return changed.map_or(Ok(()), |text| put(file, &text));
    }
    put(&options.docker_env, &settings.variables(options, &std::env::vars().collect()))
}

/// Reads `subnet.env`, again and again for this long while it is not there or not whole.
fn wait_for_subnet(file: &Path, longest: Duration) -> Result<SubnetEnv> {
    let begin = Instant::now();
    let mut said = false;
    loop {
        let error = match subnet::read(file) {
            Ok(env) => return Ok(env),
            Err(error) => error.msg,
        };
        let left = longest.saturating_sub(begin.elapsed());
        ensure!(!left.is_zero(), "no subnet after {longest:?}: {error}; twilld writes this file when it has a subnet");
        if !said {
            out::note(format_args!("twill: waiting {longest:?} for the node's subnet: {error}"));
            said = true;
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}

/// What Docker is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    /// The address of Docker's bridge with the subnet's length.
    bip: Option<String>,
    mtu: u32,
    /// Whether Docker masquerades, if it is told: the opposite of what the daemon does.
    ip_masq: Option<bool>,
    /// The IPv6 subnet of the containers.
    ipv6: Option<IpNetwork>,
}

impl Settings {
    fn of(env: &SubnetEnv, options: &Options) -> Result<Self> {
        let bip = env.subnets.iter().find(|subnet| subnet.is_ipv4()).map(|subnet| host_address(*subnet));
        let ipv6 = env.subnets.iter().find(|subnet| subnet.is_ipv6()).copied();
        ensure!(
            !options.ipv6 || ipv6.is_some(),
            "--ipv6: {} has no FLANNEL_IPV6_SUBNET",
            options.subnet_file.display()
        );
        let ip_masq = (!options.no_ip_masq).then_some(!env.ip_masq);
        Ok(Self { bip, mtu: env.mtu, ip_masq, ipv6: ipv6.filter(|_| options.ipv6) })
    }

    /// The text for Docker's unit. Like the script, it also hands on the options that the environment has.
    fn variables(&self, options: &Options, environment: &BTreeMap<String, String>) -> String {
        let both = !options.individual && !options.combined;
        let mut single: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in environment.range(OPTION.to_owned()..).take_while(|(name, _)| name.starts_with(OPTION)) {
            single.insert(name, value.clone());
        }
        single.extend(self.bip.as_ref().map(|bip| ("DOCKER_OPT_BIP", format!("--bip={bip}"))));
        single.insert("DOCKER_OPT_MTU", format!("--mtu={}", self.mtu));
        // Docker masquerades by default, so only the opposite is said.
        if self.ip_masq == Some(false) {
            single.insert("DOCKER_OPT_IPMASQ", "--ip-masq=false".to_owned());
        }
        if let Some(subnet) = self.ipv6 {
            single.insert("DOCKER_OPT_IPV6", format!("--ipv6 --fixed-cidr-v6={subnet}"));
        }
        let mut text = String::new();
        let mut all = format!("{} ", environment.get(&options.key).map_or("", String::as_str));
        for (name, value) in &single {
            if options.individual || both {
                text += &format!("{name}=\"{value}\"\n");
            }
            all += &format!("{value} ");
        }
        if options.combined || both {
            text += &format!("{}=\"{all}\"\n", options.key);
        }
        text
    }

    /// The text of a `daemon.json` with these settings instead of its own; `None` if it has them.
    fn merge(&self, text: &str) -> Result<Option<String>> {
        let old: Map<String, Value> = match text.trim() {
            "" => Map::new(),
            text => serde_json::from_str(text).context("expected a JSON object")?,
        };
        let mut new = old.clone();
        let mut set = |key: &str, value: Value| new.insert(key.to_owned(), value);
        if let Some(bip) = &self.bip {
            set("bip", json!(bip));
        }
        set("mtu", json!(self.mtu));
        if let Some(ip_masq) = self.ip_masq {
            set("ip-masq", json!(ip_masq));
        }
        if let Some(subnet) = self.ipv6 {
            set("ipv6", json!(true));
            set("fixed-cidr-v6", json!(subnet));
        }
        Ok(if new == old { None } else { Some(format!("{:#}\n", Value::Object(new))) })
    }
}

/// The name of a shell variable.
fn variable(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = text.chars().all(fits) && text.starts_with(|c: char| !c.is_ascii_digit());
    if is_name { Ok(text.to_owned()) } else { Err("expected the name of a variable, as in DOCKER_OPTS".to_owned()) }
}

/// Writes a file in one step, with its folder, in the place of a link too. A device is written to.
fn put(path: &Path, text: &str) -> Result<()> {
    let write = || -> Result<()> {
        if path == Path::new("/dev/stdout") {
            return Ok(io::stdout().write_all(text.as_bytes())?);
        }
        if path.starts_with("/dev") {
            return Ok(fs::OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())?);
        }
        let there = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
        let mode = there.map_or(0o644, |there| there.permissions().mode() & 0o7777);
        Ok(files::put(path, text.as_bytes(), Form { mode, prefix: ".twill-", suffix: "", lasting: true })?)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str, ip_masq: Option<bool>) -> Option<Value> {
        let settings = Settings { bip: Some("10.5.52.1/24".to_owned()), mtu: 1450, ip_masq, ipv6: None };
        settings.merge(text).unwrap().map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn other_settings_of_docker_s_stay() {
        let there = r#"{"log-driver": "journald", "mtu": 1500, "ip-masq": false, "runtimes": {"x": {"path": "/y"}}}"#;
        let expected = json!({
            "log-driver": "journald", "mtu": 1450, "ip-masq": true, "bip": "10.5.52.1/24",
            "runtimes": {"x": {"path": "/y"}}
        });
        assert_eq!(merged(there, Some(true)), Some(expected));
        assert_eq!(merged(r#"{"ip-masq": false}"#, None).unwrap()["ip-masq"], json!(false));
        assert_eq!(merged("", Some(false)), Some(json!({"bip": "10.5.52.1/24", "mtu": 1450, "ip-masq": false})));
        assert_eq!(merged(r#"{"bip": "10.5.52.1/24", "mtu": 1450}"#, None), None, "nothing to change");
    }

    #[test]
    fn what_is_no_configuration_of_docker_s_is_left_alone() {
        let settings = Settings { bip: None, mtu: 1450, ip_masq: None, ipv6: None };
        for text in ["[]", "{", "mtu"] {
            assert!(format!("{:#}", settings.merge(text).unwrap_err()).starts_with("expected a JSON object"), "{text}");
        }
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (theirs, link) = (folder.path().join("theirs"), folder.path().join("link"));
        fs::write(&theirs, "{}").unwrap();
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        put(&link, "ours").unwrap();
        assert_eq!(
            (fs::read_to_string(&theirs).unwrap(), fs::read_to_string(&link).unwrap()),
            ("{}".into(), "ours".into())
        );
        // A mode that somebody chose stays.
        fs::set_permissions(&link, fs::Permissions::from_mode(0o600)).unwrap();
        put(&link, "ours again").unwrap();
        assert_eq!(fs::symlink_metadata(&link).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn names_of_variables() {
        for name in ["DOCKER_OPTS", "_x", "a1"] {
            assert_eq!(variable(name).as_deref(), Ok(name));
        }
        for name in ["", "1a", "a-b", "a=b", "a b"] {
            assert!(variable(name).is_err(), "{name:?}");
        }
    }
}
