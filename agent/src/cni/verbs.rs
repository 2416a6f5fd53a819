//! What each verb does, in which order: the only place that knows all the others.

use std::io;
use std::path::PathBuf;

use super::call::{Call, Verb};
use super::conf::{NetConf, Object, find};
use super::delegate::{self, Delegate};
use super::error::{Error, code, os_text};
use super::render::{plugin_type, render, set, to_bytes};
use super::result::with_gateways;
use super::stored::{Key, Store};
use super::subnet::{self, SubnetEnv};

/// Runs the call and returns what standard output gets.
pub fn run(call: &Call, conf: &NetConf) -> Result<Vec<u8>, Error> {
    if !conf.at_least(call.verb.since()) {
        let msg = format!("config version does not allow {}", call.verb.name());
        return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
    }
    let job = Job { call, conf, store: Store::new(&conf.data_dir) };
    match call.verb {
        Verb::Add => job.add(),
        Verb::Del => job.del(),
        Verb::Check => job.check(),
        Verb::Status => job.status(),
        Verb::Gc => job.gc(),
        // Answered before the configuration is read.
        Verb::Version => Ok(Vec::new()),
    }
}

struct Job<'a> {
    call: &'a Call,
    conf: &'a NetConf,
    store: Store,
}

/// A configuration and the plugin that it is for.
struct Prepared {
    name: String,
    program: PathBuf,
    config: Vec<u8>,
}

impl Job<'_> {
    fn add(&self) -> Result<Vec<u8>, Error> {
        if let Some(most) = self.key().too_long() {
            let Key { container_id, network, ifname } = self.key();
            let msg =
                format!("the network name {network} is too long for container {container_id}, interface {ifname}");
            let details = format!("the three may have {most} bytes together: they name a file in dataDir");
            return Err(Error::new(code::INVALID_CONFIG, msg).details(details));
        }
        let env = subnet::read(&self.conf.subnet_file)?;
        let prepared = self.prepare(&render(self.conf, &env)?)?;
        let known = self.store.load(self.key()).is_ok_and(|there| there.is_some());
        self.store.save(self.key(), &prepared.config).map_err(|e| self.store_error("save", &e))?;
        match Delegate::start(&prepared.program, &prepared.name, self.call.verb) {
            Ok(delegate) => delegate.finish(&prepared.config, self.conf.delegate_timeout),
            Err(error) => {
                // Nothing has been done, so nothing must be undone later; unless an earlier ADD left something.
                if !known {
                    let _ = self.store.remove(self.key());
                }
                Err(error)
            }
        }
    }

    fn del(&self) -> Result<Vec<u8>, Error> {
        let stored = self.store.load(self.key()).map_err(|e| self.store_error("read", &e))?;
        let Some(stored) = stored else {
            self.sweep();
            return Ok(Vec::new());
        };
        let usable = serde_json::from_slice::<Object>(&stored.text).map_err(|e| e.to_string());
        let usable = usable.and_then(|config| plugin_type(&config).map(|_| config).map_err(|e| e.msg));
        let config = match usable {
            Ok(config) => self.with_prev_result(config)?,
            // A machine that lost power while flannel's plugin wrote, perhaps: what ADD would say now is near enough.
            Err(e) => match self.rendered_now() {
                Ok(config) => config,
                Err(_) => {
                    note(&format!("forgetting the stored configuration, which can't be used: {e}"));
                    self.forget();
                    return Ok(Vec::new());
                }
            },
        };
        let printed = self.delegate(&config)?;
        self.forget();
        Ok(printed)
    }

    fn check(&self) -> Result<Vec<u8>, Error> {
        let Some(prev_result) = &self.conf.prev_result else {
            return Err(Error::new(code::INVALID_CONFIG, "required prevResult missing"));
        };
        let stored = self.store.load(self.key()).map_err(|e| self.store_error("read", &e))?;
        let Some(stored) = stored else {
            let msg = format!("container {} was not added to network {}", self.call.container_id, self.conf.name);
            return Err(Error::new(code::UNKNOWN_CONTAINER, msg));
        };
        let mut config: Object = serde_json::from_slice(&stored.text)
            .map_err(|e| Error::new(code::DECODE, format!("can't read the stored configuration: {e}")))?;
        // Without a readable file there is nothing to compare with, and a pod that works is no worse for it.
        if let Ok(env) = subnet::read(&self.conf.subnet_file) {
            self.same_subnet(&config, &env)?;
        }
        // The runtime gives both in the version of today's configuration.
        set(&mut config, "prevResult", &with_gateways(prev_result))?;
        if let Some(version) = &self.conf.cni_version {
            set(&mut config, "cniVersion", version)?;
        }
        if let Some(runtime) = &self.conf.runtime_config {
            set(&mut config, "runtimeConfig", runtime)?;
        }
        self.delegate(&config)
    }

    fn status(&self) -> Result<Vec<u8>, Error> {
        let unavailable = |error: Error| match error.code {
            // What only an edit mends stays what it is.
            code::INVALID_CONFIG => error,
            _ => Error { code: code::NOT_AVAILABLE, ..error },
        };
        let config = self.rendered_now().map_err(unavailable)?;
        let prepared = self.prepare(&config).map_err(unavailable)?;
        self.execute(&prepared)
    }

    fn gc(&self) -> Result<Vec<u8>, Error> {
        let valid = self.conf.valid_attachments()?;
        let mut config = self.rendered_now()?;
        if let Some(list) = &self.conf.valid_attachments {
            set(&mut config, "cni.dev/valid-attachments", list)?;
        }
        let printed = self.delegate(&config)?;
        self.store.retain(&self.conf.name, &valid).map_err(|e| self.store_error("clean up", &e))?;
        Ok(printed)
    }

    fn key(&self) -> Key<'_> {
        let Call { container_id, ifname, .. } = self.call;
        Key { container_id, network: &self.conf.name, ifname }
    }

    fn rendered_now(&self) -> Result<Object, Error> {
        render(self.conf, &subnet::read(&self.conf.subnet_file)?)
    }

    /// Everything that can fail before the delegate runs.
    fn prepare(&self, config: &Object) -> Result<Prepared, Error> {
        let name = plugin_type(config)?;
        let program = delegate::find(&name, &self.call.path).map_err(|e| {
            let msg = format!("failed to delegate {}: {}", self.call.verb.name().to_lowercase(), e.msg);
            Error { msg, ..e }
        })?;
        Ok(Prepared { name, program, config: to_bytes(config)? })
    }

    fn delegate(&self, config: &Object) -> Result<Vec<u8>, Error> {
        self.execute(&self.prepare(config)?)
    }

    fn execute(&self, prepared: &Prepared) -> Result<Vec<u8>, Error> {
        let delegate = Delegate::start(&prepared.program, &prepared.name, self.call.verb)?;
        delegate.finish(&prepared.config, self.conf.delegate_timeout)
    }

    /// Hands ADD's result on to DEL where the stored configuration is of the version that the result is in.
    fn with_prev_result(&self, mut config: Object) -> Result<Object, Error> {
        let stored = find(&config, "cniVersion").and_then(|v| serde_json::from_str::<String>(v.get()).ok());
        if let Some(prev_result) = &self.conf.prev_result
            && stored == self.conf.cni_version
        {
            set(&mut config, "prevResult", prev_result)?;
        }
        Ok(config)
    }

    /// Whether each subnet that the pod's addresses are of still is this node's. One more, of a family that came later, is
    /// no fault of the pod.
    fn same_subnet(&self, stored: &Object, env: &SubnetEnv) -> Result<(), Error> {
        let ranges = |config: &Object| -> Option<Vec<serde_json::Value>> {
            let ipam: Object = serde_json::from_str(find(config, "ipam")?.get()).ok()?;
            serde_json::from_str(find(&ipam, "ranges")?.get()).ok()
        };
        let (then, now) = (ranges(stored), ranges(&render(self.conf, env)?));
        match (then, now) {
            (Some(then), Some(now)) if !then.iter().all(|range| now.contains(range)) => {
                let [then, now] = [then, now].map(serde_json::Value::Array);
                let msg = format!("the pod has an address of {then}, but this node's subnet is now {now}");
                Err(Error::new(code::SUBNET_CHANGED, msg).details("other nodes can't reach the pod: make it anew"))
            }
            _ => Ok(()),
        }
    }

    /// The delegate has finished, so a file that can't be removed is no failure: a further DEL does no harm.
    fn forget(&self) {
        if let Err(e) = self.store.remove(self.key()) {
            note(&self.store_error("remove", &e).msg);
        }
        self.sweep();
    }

    fn sweep(&self) {
        if let Err(e) = self.store.sweep(self.key()) {
            note(&self.store_error("clean up", &e).msg);
        }
    }

    fn store_error(&self, step: &str, error: &io::Error) -> Error {
        let dir = self.conf.data_dir.display();
        Error::new(code::IO, format!("{step} the stored configuration in {dir}: {}", os_text(error)))
    }
}

/// For the runtime's log.
fn note(text: &str) {
    crate::out::note(format_args!("flannel: {text}"));
}
