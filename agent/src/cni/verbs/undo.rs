//! DEL: taking down what an ADD made, also where the delegate can't read its own configuration.
//!
//! A DEL that fails comes back for ever (kubelet keeps the pod until it succeeds), and one that succeeds is the last. So a
//! failure stands as long as a further DEL may find something to take down, and no longer:
//! - An ADD that succeeded has left an address and an interface. Its DEL fails until the delegate succeeds.
//! - An ADD that the delegate refused, for a `vlan` of 5000 or a key of the wrong type, is refused at DEL with the same
//!   words: both read the configuration first. Nothing but what came before the refusal can be there, and that is taken
//!   down in two parts: the delegate's own without its `ipam`, which may be what it can't get past (an interface, of a
//!   bridge whose address plugin is not installed), and the address plugin's by itself.
//! - A delegate that was killed, or asks to be tried again, has refused nothing.
//!
//! The reference plugins give no code for a configuration that they can't use
//! (<https://github.com/containernetworking/plugins/blob/v1.1.1/plugins/main/bridge/bridge.go>: 999 for all), so the
//! words are what there is to compare.

use super::super::conf::{Object, find};
use super::super::delegate::{Failure, Plugin};
use super::super::error::Error;
use super::super::render::{ipam_type, plugin_type};
use super::super::stored::Stored;
use super::{Job, note};

/// What a delegate finds its things by at DEL, beside the container and the interface.
const FOUND_BY: [&str; 4] = ["type", "name", "ipam", "ipMasq"];

impl Job<'_> {
    /// Takes down what an ADD with this configuration made; what the delegate printed.
    ///
    /// # Errors
    /// The delegate's, where a further DEL may succeed.
    pub(super) fn undo(&self, stored: Stored) -> Result<Vec<u8>, Error> {
        let usable = stored.config.and_then(|config| match plugin_type(&config) {
            Ok(_) => Ok(config),
            Err(e) => Err(e.msg),
        });
        let config = match usable {
            Ok(config) => self.with_prev_result(config)?,
            Err(why) => return self.undo_unreadable(&why),
        };
        let failure = match self.ask(&config) {
            Ok(printed) => return Ok(printed),
            Err(failure) => failure,
        };
        let Failure::Refused(refusal) = &failure else { return Err(self.told(&config, failure)) };
        if let Some(printed) = self.todays(&config).and_then(|todays| self.ask(&todays).ok()) {
            return Ok(printed);
        }
        let was_refused = stored.failed.is_some_and(|at_add| is_same(&at_add, refusal));
        if was_refused && self.is_undone_in_parts(&config, refusal) {
            note(&format!("forgetting an attachment that the delegate refused at ADD and at DEL: {}", refusal.msg));
            return Ok(Vec::new());
        }
        Err(self.told(&config, failure))
    }

    /// A machine that lost power while flannel's plugin wrote, perhaps: what ADD would say now is near enough.
    fn undo_unreadable(&self, why: &str) -> Result<Vec<u8>, Error> {
        match self.rendered_now() {
            Ok(config) => self.delegate(&config),
            Err(_) => {
                note(&format!("forgetting the stored configuration, which can't be used: {why}"));
                Ok(Vec::new())
            }
        }
    }

    /// What ADD would give the delegate now, if the delegate finds the same things by it: the configuration may have been
    /// mended since.
    fn todays(&self, stored: &Object) -> Option<Object> {
        let value = |config: &Object, key| serde_json::from_str::<serde_json::Value>(find(config, key)?.get()).ok();
        let todays = self.with_prev_result(self.rendered_now().ok()?).ok()?;
        FOUND_BY.iter().all(|key| value(&todays, key) == value(stored, key)).then_some(todays)
    }

    /// Has the delegate and its address plugin take down, each by itself, what came before the refusal. Whether nothing is
    /// left that a further DEL could take down.
    fn is_undone_in_parts(&self, config: &Object, refusal: &Error) -> bool {
        let without_ipam = config.iter().filter(|(key, _)| !key.eq_ignore_ascii_case("ipam"));
        let own = self.ask(&without_ipam.map(|(key, value)| (key.clone(), value.clone())).collect());
        // Refused without its `ipam` too, so the delegate never came to call the address plugin.
        let came_first = match &own {
            Ok(_) => false,
            Err(Failure::Refused(error)) => is_same(error, refusal),
            Err(Failure::Unfinished(_)) => return false,
        };
        let ipam = ipam_type(config).and_then(|name| Plugin::find(&name, &self.call.path).ok());
        match ipam.map(|plugin| self.ask_plugin(&plugin, config)) {
            None | Some(Ok(_)) => true,
            Some(Err(Failure::Refused(error))) => came_first || is_same(&error, refusal),
            Some(Err(Failure::Unfinished(_))) => false,
        }
    }
}

/// Whether two errors give one reason. The verb is no part of it, nor are words with a digit: a time, an address in
/// memory, an exit status.
fn is_same(one: &Error, other: &Error) -> bool {
    let words = |error: &Error| {
        let msg =
            error.msg.strip_prefix("failed to delegate add: ").or(error.msg.strip_prefix("failed to delegate del: "));
        let msg = msg.unwrap_or(&error.msg).split_whitespace();
        msg.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).map(str::to_owned).collect::<Vec<_>>()
    };
    one.code == other.code && words(one) == words(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::error::code;

    #[test]
    fn the_verb_and_numbers_make_no_other_reason() {
        let error = |msg: &str| Error::new(code::DELEGATE_FAILED, msg);
        let at_add = error(
            "failed to delegate add: netplugin failed: \"time=09:11 panic: no vlan [0xc000123]\": exit status: 2",
        );
        assert!(is_same(
            &at_add,
            &error(
                "failed to delegate del: netplugin failed: \"time=09:12 panic: no vlan [0xc000456]\": exit status: 2"
            )
        ));
        assert!(!is_same(
            &at_add,
            &error(
                "failed to delegate del: netplugin failed: \"time=09:12 panic: no mtu [0xc000456]\": exit status: 2"
            )
        ));
        assert!(!is_same(&error("busy"), &Error::new(code::IO, "busy")));
    }
}
