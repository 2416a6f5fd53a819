use std::os::unix::fs::PermissionsExt;

use super::*;

const ETH0: Key<'static> = Key { container_id: "c1", network: "net", ifname: "eth0" };

struct Dir {
    store: Store,
    _root: tempfile::TempDir,
}

fn dir() -> Dir {
    let root = tempfile::tempdir().unwrap();
    Dir { store: Store::new(&root.path().join("deep/data")), _root: root }
}

impl Dir {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.store.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the delegate gets again, or the file where that can't be read.
    fn text(&self, key: Key<'_>) -> Option<String> {
        let text = |stored: Stored| match stored.config {
            Ok(config) => serde_json::to_string(&config).unwrap(),
            Err(_) => String::from_utf8(stored.text).unwrap(),
        };
        self.store.load(key).unwrap().map(text)
    }

    fn save(&self, key: Key<'_>) {
        let text = format!(r#"{{"if":"{}","name":"{}"}}"#, key.ifname, key.network);
        self.store.save(key, text.as_bytes(), None).unwrap();
    }

    /// As an earlier Twill did: the long name, and for a container's first attachment also flannel's.
    fn earlier_twill_saves(&self, key: Key<'_>) {
        fs::create_dir_all(&self.store.dir).unwrap();
        let long = self.store.dir.join(key.file_name());
        fs::write(&long, format!(r#"{{"if":"{}","name":"{}"}}"#, key.ifname, key.network)).unwrap();
        let _ = fs::hard_link(long, self.store.dir.join(key.container_id));
    }

    fn flannel_saves(&self, id: &str, text: &str) {
        fs::create_dir_all(&self.store.dir).unwrap();
        fs::write(self.store.dir.join(id), text).unwrap();
    }
}

#[test]
fn keeps_it_private_and_under_flannels_name_alone() {
    let dir = dir();
    dir.save(ETH0);
    assert_eq!(dir.names(), ["c1"]);
    assert_eq!(fs::metadata(&dir.store.dir).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(dir.store.dir.join("c1")).unwrap().permissions().mode() & 0o7777, 0o600);
    // Also where a backup has a name for it.
    fs::hard_link(dir.store.dir.join("c1"), dir.store.dir.join("../backup")).unwrap();
    assert_eq!(dir.text(ETH0).unwrap(), r#"{"if":"eth0","name":"net"}"#);
    dir.store.remove(ETH0).unwrap();
    assert!(dir.names().is_empty());
    dir.store.remove(ETH0).unwrap();
}

#[test]
fn ours_stands_behind_what_the_delegate_was_given() {
    let dir = dir();
    let failed = Error::new(7, "no \"vlan\"");
    let text = |failed| {
        dir.store.save(ETH0, br#"{"mtu":1e3,"name":"net"}"#, failed).unwrap();
        fs::read_to_string(dir.store.dir.join("c1")).unwrap()
    };
    assert_eq!(text(None), r#"{"mtu":1e3,"name":"net","twill.attachment":{"ifname":"eth0"}}"#);
    assert_eq!(
        text(Some(failed.clone())),
        r#"{"mtu":1e3,"name":"net","twill.attachment":{"ifname":"eth0","failed":{"code":7,"msg":"no \"vlan\"","details":""}}}"#
    );
    assert_eq!(dir.store.load(ETH0).unwrap().unwrap().failed, Some(failed));
    assert_eq!(dir.text(ETH0).unwrap(), r#"{"mtu":1e3,"name":"net"}"#);
    assert!(dir.store.save(ETH0, b"no object", None).is_err());
}

#[test]
fn a_repeated_save_replaces_the_file_and_can_be_undone() {
    let dir = dir();
    for key in [ETH0, Key { ifname: "net1", ..ETH0 }] {
        dir.save(key);
        let (names, earlier) = (dir.names(), dir.store.load(key).unwrap().unwrap());
        dir.store.save(key, br#"{"name":"net","second":true}"#, None).unwrap();
        assert_eq!(dir.names(), names);
        assert_eq!(dir.text(key).unwrap(), r#"{"name":"net","second":true}"#);
        dir.store.restore(key, &earlier).unwrap();
        assert_eq!((dir.names(), fs::read(&earlier.path).unwrap()), (names, earlier.text));
    }
}

#[test]
fn what_an_earlier_twill_stored_is_found_and_goes_with_both_names() {
    let dir = dir();
    let net1 = Key { ifname: "net1", ..ETH0 };
    dir.earlier_twill_saves(ETH0);
    dir.earlier_twill_saves(net1);
    assert_eq!(dir.names(), ["c1", "c1:net:eth0", "c1:net:net1"]);
    // The second name is nobody else's, and nobody else takes it.
    assert_eq!(dir.text(Key { ifname: "net2", ..ETH0 }), None);
    dir.store.remove(net1).unwrap();
    dir.save(net1);
    assert_eq!(dir.names(), ["c1", "c1:net:eth0", "c1:net:net1"]);
    dir.store.remove(net1).unwrap();
    // Another ADD takes its place, and leaves no second name behind.
    dir.save(ETH0);
    assert_eq!(dir.names(), ["c1:net:eth0"]);
    dir.store.remove(ETH0).unwrap();
    dir.earlier_twill_saves(ETH0);
    dir.store.remove(ETH0).unwrap();
    assert!(dir.names().is_empty());
    dir.earlier_twill_saves(ETH0);
    dir.store.retain("net", &BTreeSet::new()).unwrap();
    assert!(dir.names().is_empty());
}

#[test]
fn attachments_of_one_container_do_not_mix() {
    let dir = dir();
    let others = [
        Key { ifname: "net1", ..ETH0 },
        Key { network: "blue", ..ETH0 },
        Key { container_id: "c2", network: "net", ifname: "eth0" },
    ];
    dir.save(ETH0);
    for key in others {
        assert_eq!(dir.text(key), None, "{key:?}");
        dir.save(key);
    }
    dir.store.remove(ETH0).unwrap();
    dir.store.remove(ETH0).unwrap();
    for key in others {
        assert_eq!(dir.text(key).unwrap(), format!(r#"{{"if":"{}","name":"{}"}}"#, key.ifname, key.network));
        dir.store.remove(key).unwrap();
    }
    assert!(dir.names().is_empty());
}

#[test]
fn finds_what_flannels_plugin_stored() {
    let dir = dir();
    dir.flannel_saves("c1", r#"{"name":"net","type":"bridge"}"#);
    assert_eq!(dir.text(Key { network: "blue", ..ETH0 }), None);
    assert_eq!(dir.text(ETH0).unwrap(), r#"{"name":"net","type":"bridge"}"#);
    // Of another network: both stay.
    dir.save(Key { network: "blue", ..ETH0 });
    assert_eq!(dir.names(), ["c1", "c1:blue:eth0"]);
    dir.store.remove(ETH0).unwrap();
    assert_eq!(dir.names(), ["c1:blue:eth0"]);
    // Of the same: replaced.
    dir.flannel_saves("c2", r#"{"name":"net"}"#);
    let c2 = Key { container_id: "c2", ..ETH0 };
    dir.save(c2);
    dir.store.remove(c2).unwrap();
    assert_eq!(dir.names(), ["c1:blue:eth0"]);
}

#[test]
fn what_nobody_can_read_is_whose_name_it_has() {
    let dir = dir();
    for cut in ["", r#"{"name":"n"#] {
        dir.flannel_saves("c1", cut);
        assert_eq!(dir.text(ETH0).unwrap(), cut);
        dir.store.remove(ETH0).unwrap();
        assert!(dir.names().is_empty());
    }
    fs::create_dir(dir.store.dir.join("c3")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.store.dir.join("c4")).unwrap();
    nix::unistd::mkfifo(&dir.store.dir.join("c5"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for container_id in ["c3", "c4", "c5"] {
        let key = Key { container_id, ..ETH0 };
        assert_eq!(dir.text(key), None);
        dir.save(key);
        assert!(dir.text(key).is_some());
    }
    dir.store.retain("other", &BTreeSet::new()).unwrap();
}

#[test]
fn retain_spares_the_valid_and_other_networks() {
    let dir = dir();
    let stale = Key { container_id: "c2", ..ETH0 };
    let blue = Key { container_id: "c2", network: "blue", ifname: "net1" };
    dir.save(ETH0);
    dir.save(stale);
    dir.save(blue);
    dir.flannel_saves("old", r#"{"name":"net"}"#);
    dir.flannel_saves("old-valid", r#"{"name":"net"}"#);
    dir.flannel_saves("old-blue", r#"{"name":"blue"}"#);
    dir.flannel_saves("rubbish", "");
    dir.flannel_saves(".new-abc:c9:net:eth0", "");
    dir.flannel_saves(".new-abc:c9:blue:eth0", "");
    let valid = BTreeSet::from([("c1".into(), "eth0".into()), ("old-valid".into(), "eth0".into())]);
    dir.store.retain("net", &valid).unwrap();
    let left = [".new-abc:c9:blue:eth0", "c1", "c2:blue:net1", "old-blue", "old-valid", "rubbish"];
    assert_eq!(dir.names(), left);
    dir.store.retain("net", &valid).unwrap();
    assert_eq!(dir.names(), left);
}

#[test]
fn sweep_removes_what_was_left_unfinished_of_its_own() {
    let dir = dir();
    dir.save(ETH0);
    for name in [".new-abc123:c1:net:eth0", ".new-link:c1:net:eth0", ".new-abc:c1:net:eth1", ".new-abc:c2:net:eth0"] {
        dir.flannel_saves(name, "");
    }
    dir.store.sweep(ETH0).unwrap();
    assert_eq!(dir.names(), [".new-abc:c1:net:eth1", ".new-abc:c2:net:eth0", "c1"]);
}

#[test]
fn names_that_fit_can_be_stored_and_longer_ones_are_not_there() {
    let dir = dir();
    let long = "n".repeat(300);
    let most = Key { network: &long, ..ETH0 }.too_long().unwrap();
    let longest = &long[..most - ETH0.container_id.len() - ETH0.ifname.len()];
    let key = Key { network: longest, ..ETH0 };
    assert_eq!(key.too_long(), None);
    dir.save(key);
    dir.save(key);
    assert!(dir.text(key).is_some());
    assert_eq!(dir.text(Key { network: &long, ..ETH0 }), None);
    assert_eq!(dir.text(Key { container_id: &long, ..ETH0 }), None);
}

#[test]
fn no_directory_is_nothing_stored() {
    let dir = dir();
    assert_eq!(dir.text(ETH0), None);
    dir.store.retain("net", &BTreeSet::new()).unwrap();
    // Nor can anything be stored in what is no directory.
    fs::create_dir(dir.store.dir.parent().unwrap()).unwrap();
    fs::write(&dir.store.dir, "").unwrap();
    assert_eq!(dir.text(ETH0), None);
    dir.store.remove(ETH0).unwrap();
    dir.store.sweep(ETH0).unwrap();
}
