//! Shell scripts and YAML files, by their linters.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{deploy, root, run};

/// All files below a folder whose name ends so.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn shellcheck_finds_nothing() {
    let mut scripts = files(&deploy(""), &[".sh", "/postinst", "/prerm", "/postrm", "/preinst"]);
    scripts.push(root().join(".ci/run"));
    assert!(scripts.len() > 4, "{scripts:?}");
    run(Command::new("shellcheck").args(&scripts));
}

#[test]
fn yamllint_finds_nothing() {
    let yaml: Vec<PathBuf> = files(&deploy(""), &[".yaml", ".yml"])
        .into_iter()
        // Templates are no YAML; what they become is checked.
        .filter(|path| !path.to_string_lossy().contains("/templates/"))
        .collect();
    assert!(yaml.len() > 8, "{yaml:?}");
    run(Command::new("yamllint").args(["--strict", "--config-file"]).arg(deploy("yamllint.conf")).args(&yaml));
}
