//! Which commit the programs are of, for `--version`; and small relocations in static programs.
//!
//! `TWILL_COMMIT` names it where it is set: a source archive has no history. Without it git is asked, for optimised builds
//! only: in a debug build each commit would compile the agent anew.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=TWILL_COMMIT");
    let optimised = std::env::var("OPT_LEVEL").is_ok_and(|level| level != "0");
    let named = std::env::var("TWILL_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = named.or_else(|| optimised.then(head).flatten());
    let commit = commit.map_or_else(|| "development build".to_owned(), |commit| format!("commit {commit}"));
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo::rustc-env=TWILL_VERSION={version} ({commit})");
    let is_static =
        std::env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|on| on.split(',').any(|on| on == "crt-static"));
    if is_static {
        // A static program relocates itself, and so needs no loader that knows the form. 0.4 MB of twilld.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The commit that is checked out; `None` outside a git repository or without git.
fn head() -> Option<String> {
    // The log of HEAD grows with each commit, checkout and rebase.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])?);
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
