//! What deploy/ has: unit, manifests, chart, scripts, Docker's options, by the tools that will read them.
//!
//! One program, so that it is linked once. The tools come from deploy/setup/deploy.sh.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "deploy_chart.rs"]
mod chart;
#[path = "deploy_docker.rs"]
mod docker;
#[path = "deploy_image.rs"]
mod image;
#[path = "deploy_manifests.rs"]
mod manifests;
#[path = "deploy_metrics.rs"]
mod metrics;
#[path = "deploy_migration.rs"]
mod migration;
#[path = "deploy_network.rs"]
mod network;
#[path = "deploy_package.rs"]
mod package;
#[path = "deploy_scripts.rs"]
mod scripts;
#[path = "deploy_statically_linked.rs"]
mod statically_linked;
#[path = "deploy_units.rs"]
mod units;

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file or folder of deploy/.
fn deploy(path: &str) -> PathBuf {
    root().join("deploy").join(path)
}

/// A tool that deploy/setup/deploy.sh put into target/deploy-tools.
fn tool(name: &str) -> PathBuf {
    // The tests may be built elsewhere: target is where they run from.
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().map(|dir| dir.join("deploy-tools").join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no target/deploy-tools/{name}: run deploy/setup/deploy.sh first"))
}

fn output(command: &mut Command) -> Output {
    let output = command.output();
    output.unwrap_or_else(|e| panic!("{command:?}: {e}; run deploy/setup/deploy.sh first"))
}

/// Runs a command to a good end; its output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = output(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// python3 with what the tools brought.
fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", tool("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
