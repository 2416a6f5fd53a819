//! `twill init-config`: writes the network config to etcd where there is none, for a Job that sets a network up.
//!
//! An existing config is never changed: nodes may have leased their subnets by it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::EtcdFlags;
use crate::overlay::NetworkConfig;
use crate::store::{Store, Written};

/// etcd takes no longer value unless told to (`--max-request-bytes`), in bytes.
const LONGEST: u64 = 3 << 19;

/// Writes what the file holds (`-`: standard input), and returns what to tell people.
///
/// # Errors
/// A config that no node could use, and an etcd that does not answer or refuses.
pub async fn run(etcd: &EtcdFlags, file: &Path) -> Result<String> {
    let text = read(file).with_context(|| format!("read {}", file.display()))?;
    NetworkConfig::parse(&text).with_context(|| format!("{}: not usable", file.display()))?;
    let store = etcd.store()?;
    let key = store.config_key().to_owned();
    if store.create_config(&text).await? == Written::Conflict {
        let there = store.config().await?;
        let same =
            there.as_deref().and_then(|there| NetworkConfig::parse(there).ok()) == NetworkConfig::parse(&text).ok();
        let how = if same { "and says the same" } else { "and says something else" };
        return Ok(format!("{key} is there already {how}: left as it is"));
    }
    Ok(format!("{key} is written"))
}

/// All of a file; a pipe may be one.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if file == Path::new("-") {
        io::stdin().lock().take(LONGEST + 1).read_to_end(&mut text)?;
    } else {
        File::open(file)?.take(LONGEST + 1).read_to_end(&mut text)?;
    }
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {LONGEST} bytes")));
    }
    Ok(text)
}
