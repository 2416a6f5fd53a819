//! What each verb does, in which order: the only place that knows all the others.

mod undo;

use std::io;
use std::time::Instant;

use super::call::{Call, Verb};
use super::conf::{NetConf, Object, SUPPORTED, find};
use super::delegate::{Delegate, Failure, Plugin};
use super::error::{Error, code, os_text};
use super::render::{ipam_type, plugin_type, render, set, to_bytes};
use super::result::with_gateways;
use super::stored::{Key, Store, Stored};
use super::subnet::{self, SubnetEnv};

/// Runs the call and returns what standard output gets.
pub fn run(call: &Call, conf: &NetConf) -> Result<Vec<u8>, Error> {
    if !conf.at_least(call.verb.since()) {
        let msg = format!("config version does not allow {}", call.verb.name());
        return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
    }
    let job = Job { call, conf, store: Store::new(&conf.data_dir), deadline: Instant::now() + conf.delegate_timeout };
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
    /// When all delegates must have ended.
    deadline: Instant,
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
        let config = render(self.conf, &subnet::read(&self.conf.subnet_file)?)?;
        let (plugin, text) = (self.plugin(&config)?, to_bytes(&config)?);
        let earlier = self.store.load(self.key()).map_err(|e| self.store_error("read", &e))?;
        self.store.save(self.key(), &text, None).map_err(|e| self.store_error("save", &e))?;
        let delegate = Delegate::start(&plugin, self.call.verb).inspect_err(|_| self.nothing_done(earlier.as_ref()))?;
        delegate.finish(&text, self.deadline).map_err(|failure| {
            self.remember(&text, &failure, earlier.as_ref());
            self.told(&config, failure)
        })
    }

    /// The delegate was never started, so nothing must be undone later but what an earlier ADD left.
    fn nothing_done(&self, earlier: Option<&Stored>) {
        let done = match earlier {
            Some(earlier) => self.store.restore(self.key(), earlier),
            None => self.store.remove(self.key()),
        };
        if let Err(e) = done {
            note(&self.store_error("remove", &e).msg);
        }
    }

    /// Keeps a delegate's refusal for DEL, which may meet the same one. Not where an earlier ADD may have succeeded: what
    /// that one left must be taken down in any case.
    fn remember(&self, text: &[u8], failure: &Failure, earlier: Option<&Stored>) {
        let Failure::Refused(error) = failure else { return };
        if earlier.is_some_and(|earlier| earlier.failed.is_none()) {
            return;
        }
        if let Err(e) = self.store.save(self.key(), text, Some(error.clone())) {
            note(&self.store_error("save", &e).msg);
        }
    }

    fn del(&self) -> Result<Vec<u8>, Error> {
        let stored = self.store.load(self.key()).map_err(|e| self.store_error("read", &e))?;
        let Some(stored) = stored else {
            self.sweep();
            return Ok(Vec::new());
        };
        let printed = self.undo(stored)?;
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
        let mut config =
            stored.config.map_err(|e| Error::new(code::DECODE, format!("can't read the stored configuration: {e}")))?;
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
        self.plugin(&config).map_err(unavailable)?;
        self.delegate(&config)
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

    /// The plugin that a configuration is for.
    fn plugin(&self, config: &Object) -> Result<Plugin, Error> {
        Plugin::find(&plugin_type(config)?, &self.call.path).map_err(|e| {
            let msg = format!("failed to delegate {}: {}", self.call.verb.name().to_lowercase(), e.msg);
            Error { msg, ..e }
        })
    }

    fn delegate(&self, config: &Object) -> Result<Vec<u8>, Error> {
        self.ask(config).map_err(|failure| self.told(config, failure))
    }

    /// Has the delegate do what the runtime wants.
    fn ask(&self, config: &Object) -> Result<Vec<u8>, Failure> {
        let plugin = self.plugin(config).map_err(Failure::Unfinished)?;
        self.ask_plugin(&plugin, config)
    }

    fn ask_plugin(&self, plugin: &Plugin, config: &Object) -> Result<Vec<u8>, Failure> {
        let config = to_bytes(config).map_err(Failure::Unfinished)?;
        let delegate = Delegate::start(plugin, self.call.verb).map_err(Failure::Unfinished)?;
        delegate.finish(&config, self.deadline)
    }

    /// The error that the runtime gets. Where a plugin is older than the network's `cniVersion`, which it says in words that
    /// name neither, the error says which plugin, and what it knows.
    fn told(&self, config: &Object, failure: Failure) -> Error {
        let error = Error::from(failure);
        if !matches!(error.code, code::INCOMPATIBLE_VERSION | code::INVALID_ENVIRONMENT) {
            return error;
        }
        let wanted = find(config, "cniVersion").and_then(|v| serde_json::from_str::<String>(v.get()).ok());
        let wanted = wanted.unwrap_or_else(|| SUPPORTED[0].into());
        let names = [plugin_type(config).ok(), ipam_type(config)];
        for plugin in names.iter().flatten().filter_map(|name| Plugin::find(name, &self.call.path).ok()) {
            let Plugin { name, program } = &plugin;
            if let Some(known) = plugin.versions()
                && !known.contains(&wanted)
            {
                let known = known.join(", ");
                let msg = format!("incompatible CNI versions: the plugin {name} does not know cniVersion {wanted}");
                let details = format!(
                    "{} knows {known}: give the network one of these as cniVersion, or install a newer {name}; it said: {}",
                    program.display(),
                    error.in_full()
                );
                return Error::new(code::INCOMPATIBLE_VERSION, msg).details(details);
            }
        }
        // It doesn't say what it knows; its name is what there is.
        match plugin_type(config) {
            Ok(name) if error.code == code::INCOMPATIBLE_VERSION => {
                Error { msg: format!("{}: the plugin {name} was given cniVersion {wanted}", error.msg), ..error }
            }
            _ => error,
        }
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
