//! `twill install-cni`, the program, as an init container runs it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::names;

const CONFLIST: &str = "10-flannel.conflist";

fn install(twill: &Path, root: &Path) -> Output {
    let dir = |flag: &str, name: &str| format!("--{flag}={}", root.join(name).display());
    Command::new(twill).arg("install-cni").args([dir("bin-dir", "bin"), dir("conf-dir", "net.d")]).output().unwrap()
}

#[test]
fn the_plugin_and_its_configuration_are_put_in_place_and_work() {
    let root = tempfile::tempdir().unwrap();
    let (bin, conf) = (root.path().join("bin"), root.path().join("net.d"));
    for words in ["installed", "is up to date"] {
        let output = install(Path::new(env!("CARGO_BIN_EXE_twill")), root.path());
        assert!(output.status.success(), "{output:?}");
        let said = format!("{0}/flannel {words}, {1}/{CONFLIST} {words}\n", bin.display(), conf.display());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), said);
        assert_eq!((names(&bin), names(&conf)), (vec!["flannel".to_owned()], vec![CONFLIST.to_owned()]));
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&bin.join("flannel")), mode(&conf.join(CONFLIST))), (0o755, 0o644));
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cni").join(CONFLIST);
    assert_eq!(fs::read(conf.join(CONFLIST)).unwrap(), fs::read(deployed).unwrap());
    let version = Command::new(bin.join("flannel")).env("CNI_COMMAND", "VERSION").output().unwrap();
    assert!(version.status.success() && String::from_utf8_lossy(&version.stdout).contains("1.1.0"), "{version:?}");
}

#[test]
fn an_earlier_plugin_is_replaced_also_while_it_runs() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("bin")).unwrap();
    let plugin = root.path().join("bin/flannel");
    fs::copy("/bin/sleep", &plugin).unwrap();
    let mut running = Command::new(&plugin).arg("1000").spawn().unwrap();
    let output = install(Path::new(env!("CARGO_BIN_EXE_twill")), root.path());
    let went_on = running.try_wait().unwrap().is_none();
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(output.status.success() && went_on, "{output:?}");
    assert_eq!(fs::read(plugin).unwrap(), fs::read(env!("CARGO_BIN_EXE_flannel")).unwrap());
}

#[test]
fn without_a_plugin_beside_it_nothing_is_put_in_place() {
    let root = tempfile::tempdir().unwrap();
    let twill = root.path().join("twill");
    fs::copy(env!("CARGO_BIN_EXE_twill"), &twill).unwrap();
    let output = install(&twill, root.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let wanted = format!("twill: read {}/flannel: No such file or directory", root.path().display());
    assert!(said.starts_with(&wanted), "{said}");
    assert_eq!(names(root.path()), ["twill"]);
}

#[test]
fn links_in_their_places_are_replaced_and_what_they_lead_to_stays() {
    let root = tempfile::tempdir().unwrap();
    let theirs = root.path().join("theirs");
    fs::write(&theirs, "of another package").unwrap();
    for place in [root.path().join("bin/flannel"), root.path().join("net.d").join(CONFLIST)] {
        fs::create_dir(place.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&theirs, place).unwrap();
    }
    let output = install(Path::new(env!("CARGO_BIN_EXE_twill")), root.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "of another package");
    assert!(fs::symlink_metadata(root.path().join("bin/flannel")).unwrap().is_file());
    assert!(fs::symlink_metadata(root.path().join("net.d").join(CONFLIST)).unwrap().is_file());
}

#[test]
fn the_operator_s_configuration_is_what_is_installed_and_an_earlier_one_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let (conf, mine) = (root.path().join("net.d"), root.path().join("mine.conflist"));
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join(CONFLIST), "an earlier flannel's").unwrap();
    let install = |text: &str| {
        fs::write(&mine, text).unwrap();
        let dir = |flag: &str, name: &str| format!("--{flag}={}", root.path().join(name).display());
        let mut twill = Command::new(env!("CARGO_BIN_EXE_twill"));
        twill.arg("install-cni").args([
            dir("bin-dir", "bin"),
            dir("conf-dir", "net.d"),
            dir("conflist", "mine.conflist"),
        ]);
        twill.output().unwrap()
    };
    let refused = install("{}");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(names(&conf), [CONFLIST]);
    let text = r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel","delegate":{"mtu":1400}}]}"#;
    for _ in 0..2 {
        let output = install(text);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(names(&conf), [CONFLIST.to_owned(), format!("{CONFLIST}.before-twill")]);
        assert_eq!(fs::read_to_string(conf.join(CONFLIST)).unwrap(), text);
        let kept = fs::read_to_string(conf.join(format!("{CONFLIST}.before-twill"))).unwrap();
        assert_eq!(kept, "an earlier flannel's");
    }
}

#[test]
fn without_a_umask_nobody_else_can_write_what_it_makes() {
    let root = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_twill"), "install-cni"]);
    let dir = |flag: &str, name: &str| format!("--{flag}={}", root.path().join(name).display());
    assert!(command.args([dir("bin-dir", "a/bin"), dir("conf-dir", "a/net.d")]).status().unwrap().success());
    for (made, wanted) in [
        ("a", 0o755),
        ("a/bin", 0o755),
        ("a/net.d", 0o755),
        ("a/bin/flannel", 0o755),
        ("a/net.d/10-flannel.conflist", 0o644),
    ] {
        let mode = fs::metadata(root.path().join(made)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, wanted, "{made} has {mode:o}");
    }
}

/// A plugin with all that a debugger reads has 47 MB, and one of a release build is what people install.
#[test]
fn a_release_build_leaves_out_what_a_debugger_reads() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")).unwrap();
    let release = manifest.split_once("[profile.release]").unwrap().1;
    let release = release.split("\n[").next().unwrap();
    assert!(release.lines().any(|line| line == "strip = \"debuginfo\""), "{release}");
    assert!(!release.lines().any(|line| line.starts_with("debug")), "{release}");
}
