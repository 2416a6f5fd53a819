//! The network config's key while the daemon runs. It goes on with the config that it started with, whatever the key holds.

use tracing::{error, info, warn};

use super::{EventLoop, clock};
use crate::overlay::{NetworkConfig, Shown};
use crate::site::Site;

/// What the key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConfigNow {
    /// The config that this daemon runs on, perhaps written in another way.
    Ours,
    /// Nothing.
    Gone,
    /// Another text.
    Other(Vec<u8>),
}

impl ConfigNow {
    fn of(site: &Site, text: Option<Vec<u8>>) -> Self {
        match text {
            None => Self::Gone,
            Some(text) if text == site.config_text => Self::Ours,
            Some(text) if NetworkConfig::parse(&text).is_ok_and(|config| config == site.config) => Self::Ours,
            Some(text) => Self::Other(text),
        }
    }

    /// The same in a word or two.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::Ours => "the one that this daemon runs on",
            Self::Gone => "none; this daemon goes on with the one it started with",
            Self::Other(_) => "another one; this daemon goes on with the one it started with until it is restarted",
        }
    }

    /// Says that the key holds this now.
    pub(super) fn say(&self) {
        let text = match self {
            Self::Ours => {
                return info!("the network config is again the one that this daemon runs on: no restart is needed");
            }
            Self::Gone => {
                return warn!("the network config was deleted; this daemon goes on with the one it started with");
            }
            Self::Other(text) => text,
        };
        let config_now = Shown::new(text);
        match NetworkConfig::parse(text) {
            Ok(_) => {
                warn!(%config_now, "the network config was changed; this daemon goes on with the one it started with until it is restarted");
            }
            Err(error) => {
                error!(%config_now, %error, "the network config was changed and is not usable: no daemon starts with it; this one goes on with the one it started with");
            }
        }
    }
}

impl<D> EventLoop<D> {
    /// The key was written or deleted, or a complete read has shown it.
    pub(super) fn config_changed(&mut self, text: Option<Vec<u8>>) {
        let now = ConfigNow::of(&self.site, text);
        if now != self.config {
            self.told.config(&now, clock::now());
            self.config = now;
        }
    }
}
