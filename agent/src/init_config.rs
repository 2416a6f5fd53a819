//! `twill init-config`: writes the network config to etcd where there is none, for a Job that sets a network up.
//!
//! An existing config is never changed: nodes may have leased their subnets by it.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::EtcdFlags;
use crate::files;
use crate::leases::Asked;
use crate::overlay::{NetworkConfig, Shown};
use crate::store::{Error, Store, Written};

/// etcd takes no longer value unless told to (`--max-request-bytes`), in bytes.
const LONGEST: u64 = 3 << 19;
/// As much of a config as is shown, in characters.
const SHOWN: usize = 600;

/// How it ended, with what to tell people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    /// etcd has the config that was asked for.
    AsAsked(String),
    /// etcd has another one, which stays.
    Another(String),
}

/// Writes what the file holds (`-`: standard input).
///
/// # Errors
/// A file that is no regular one, a config that no node could use, and an etcd that refuses or does not answer in time.
pub async fn run(etcd: &EtcdFlags, asked: &Asked, file: &Path) -> Result<Stands> {
    let text = read(file).with_context(|| format!("read {}", file.display()))?;
    let wanted = NetworkConfig::parse(&text).with_context(|| format!("{}: not usable", file.display()))?;
    let store = etcd.store()?;
    let key = store.config_key().to_owned();
    let work = asked.retry(async || {
        loop {
            // Read first: etcd refuses a transaction that could write to whoever may only read, also where it would not write.
            if let Some(there) = store.config().await? {
                return Ok::<_, Error>(Some(there));
            }
            // Not written: another one wrote it meanwhile.
            if let Written::At(_) = store.create_config(&text).await? {
                return Ok(None);
            }
        }
    });
    let Some(there) = asked.within(work).await? else { return Ok(Stands::AsAsked(format!("{key} is written"))) };
    if NetworkConfig::parse(&there).is_ok_and(|there| there == wanted) {
        return Ok(Stands::AsAsked(format!("{key} is there already and says the same: left as it is")));
    }
    let (there, text) = (one_line(&there), one_line(&text));
    let (there, text) = (Shown::up_to(SHOWN, &there), Shown::up_to(SHOWN, &text));
    let told =
        format!("{key} is there already and says something else: left as it is; there: {there}; asked for: {text}");
    Ok(Stands::Another(told))
}

/// All of a file. A FIFO could be waited for for ever, and a device has no end.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return files::read(file, LONGEST);
    }
    let mut text = Vec::new();
    io::stdin().lock().take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {LONGEST} bytes")));
    }
    Ok(text)
}

/// JSON without its line ends and indents.
fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ")
}
