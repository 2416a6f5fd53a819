//! Shell scripts and YAML files, by their linters.

use std::path::{Path, PathBuf};
use std::process::Command;

use twill_lab::Lab;

use crate::{deploy, output, root, run};

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

/// What a script that fails says.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = output(command);
    assert!(!output.status.success(), "{command:?} ends well: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_shipped_has_to_be_static() {
    let checked = |program: &Path| refused(Command::new(deploy("setup/static.sh")).arg(program));
    let dynamic = checked(&twill_lab::program("twill").unwrap());
    assert!(dynamic.contains("is not static"), "{dynamic}");
    for no_program in [deploy("setup/static.sh"), deploy("nothing")] {
        let said = checked(&no_program);
        assert!(said.contains("static.sh: cannot read") || said.contains("is no program"), "{said}");
    }
}

#[test]
fn the_role_of_a_node_that_may_do_more_is_an_error() {
    let lab = Lab::with_nodes(1);
    let script = || {
        let mut script = lab.node(1).netns().command(deploy("etcd/node-role.sh")).unwrap();
        script.env("ETCDCTL_ENDPOINTS", lab.etcd().url());
        script
    };
    run(&mut script());
    let role = || lab.etcdctl(&["role", "get", "twill-node"]).unwrap();
    let made = role();
    run(&mut script());
    assert_eq!(role(), made, "a second run changes it");
    for (more, named) in [
        (&["readwrite", "/coreos.com/network/config"][..], "write /coreos.com/network/config"),
        (&["read", "--prefix=true", "/coreos.com/"], "read [/coreos.com/, /coreos.com0) (prefix /coreos.com/)"),
    ] {
        lab.etcdctl(&[&["role", "grant-permission", "twill-node"], more].concat()).unwrap();
        let before = role();
        let said = refused(&mut script());
        assert!(said.contains("the role twill-node may do more") && said.contains(named), "{said}");
        assert_eq!(role(), before);
    }
}
