//! Keeps `subnet.env` in place.

use tracing::{info, warn};

use super::{EventLoop, clock};
use crate::handoff;

/// With more in a minute, another program keeps changing the file.
pub(super) const LINES: u32 = 3;

impl<D> EventLoop<D> {
    /// Puts `subnet.env` in place where it is not there as it should be.
    pub(super) fn write_env(&mut self) {
        let mtu = self.families.iter().map(|family| family.device.mtu).min().unwrap_or_default();
        let written = self.site.subnet_env(&self.own.key, mtu).write(&self.site.subnet_file);
        if let Some(times) = self.rewritten.count(clock::now()) {
            warn!(times, "another program keeps changing subnet.env; the daemon writes it again each time");
        }
        if let Ok(true) = written
            && self.rewritten.admit(clock::now())
        {
            info!(file = %self.site.subnet_file.display(), mtu, "subnet.env written");
        }
        let problem = written.err().map(|error| error.to_string());
        if let Some(error) = problem.as_ref().filter(|_| problem != self.health.file) {
            warn!(%error, "cannot write subnet.env, trying until it works");
        }
        if problem != self.health.file {
            handoff::explain(&self.site.subnet_file, problem.as_deref());
        }
        self.health.file = problem;
    }
}
