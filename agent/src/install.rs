//! `twill install-cni`: puts the plugin and its configuration where the runtime looks, as an init container does.
//!
//! Both are written beside their place and renamed, so a runtime sees the old or the new one, whole, and a plugin that
//! is running goes on. The plugin first: the configuration is what makes a node ready for pods. A configuration that is
//! neither ours nor the wanted one is kept beside it, once, before it is replaced.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, Form};

/// The plugin's name, which is also its `type` in a configuration.
pub const PLUGIN: &str = "flannel";

/// The configuration's name: flannel's own, so that it takes its place and does not stand beside it.
pub const CONFLIST: &str = "10-flannel.conflist";

/// Begins the names of files that are being written; no ending follows that a runtime takes for a configuration's.
const NEW: &str = ".twill-";

/// The name of the configuration that was there before ours. libcni reads names that end in `.conf`, `.conflist` or
/// `.json`, so no runtime takes it for a configuration.
const BEFORE: &str = "10-flannel.conflist.before-twill";

/// More than any build of the plugin has, with all that a debugger wants to know.
const LONGEST_PLUGIN: u64 = 1 << 30;

/// What a ConfigMap holds at most, in bytes.
const LONGEST_CONFLIST: u64 = 1 << 20;

/// flannel and portmap.
const DEFAULT_CONFLIST: &[u8] = include_bytes!("../../deploy/cni/10-flannel.conflist");

/// What is in place now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The plugin, and whether it was any different.
    pub plugin: (PathBuf, bool),
    /// The configuration, and whether it was any different.
    pub conflist: (PathBuf, bool),
    /// Where the operator's earlier configuration is now, if this call moved it there.
    pub kept: Option<PathBuf>,
}

impl std::fmt::Display for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [plugin, conflist] = [&self.plugin, &self.conflist].map(|(path, changed)| {
            format!("{} {}", path.display(), if *changed { "installed" } else { "is up to date" })
        });
        write!(f, "{plugin}, {conflist}")?;
        let Some(kept) = &self.kept else { return Ok(()) };
        write!(f, ", the one of before is {}", kept.display())
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}: {source}", path.display())]
pub struct Error {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Installs the `flannel` beside this program, or the one of the Debian package, and the configuration of the operator's
/// file, or the one that is built in.
pub fn install_cni(conflist: Option<&Path>, bin_dir: &Path, conf_dir: &Path) -> Result<Installed, Error> {
    let conflist = conflist.map(read_conflist).transpose()?;
    let own = std::env::current_exe().map_err(failed("find", Path::new("this program")))?;
    let beside = own.with_file_name(PLUGIN);
    let packaged = own.parent().and_then(Path::parent).map(|usr| usr.join("libexec/twill").join(PLUGIN));
    let plugin = packaged.filter(|packaged| !beside.exists() && packaged.exists()).unwrap_or(beside);
    install(&plugin, conflist.as_deref().unwrap_or(DEFAULT_CONFLIST), bin_dir, conf_dir)
}

/// Installs the plugin at `plugin` and a configuration, one that the operator wrote for example.
pub fn install(plugin: &Path, conflist: &[u8], bin_dir: &Path, conf_dir: &Path) -> Result<Installed, Error> {
    let program = files::read(plugin, LONGEST_PLUGIN).map_err(failed("read", plugin))?;
    let (plugin, conf) = (bin_dir.join(PLUGIN), conf_dir.join(CONFLIST));
    let new_plugin = put(&plugin, &program, 0o755)?;
    let kept = keep_foreign(&conf, conflist)?;
    let new_conf = put(&conf, conflist, 0o644)?;
    Ok(Installed { plugin: (plugin, new_plugin), conflist: (conf, new_conf), kept })
}

/// The operator's configuration. One that no runtime could load is refused here: in its place it would leave the node
/// without any network.
fn read_conflist(file: &Path) -> Result<Vec<u8>, Error> {
    let text = files::read(file, LONGEST_CONFLIST).map_err(failed("read", file))?;
    let wrong = |why: String| failed("use", file)(io::Error::new(io::ErrorKind::InvalidData, why));
    let list: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let is_text = |value: &serde_json::Value| value.as_str().is_some_and(|text| !text.is_empty());
    if !is_text(&list["name"]) {
        return Err(wrong("not a CNI configuration list: no \"name\"".to_owned()));
    }
    match list["plugins"].as_array() {
        Some(plugins) if !plugins.is_empty() && plugins.iter().all(|plugin| is_text(&plugin["type"])) => Ok(text),
        _ => Err(wrong("not a CNI configuration list: no \"plugins\", each with a \"type\"".to_owned())),
    }
}

/// Gives what is at `path` a second name if it is neither the built-in configuration nor the wanted one: the operator's, or
/// an earlier flannel's. Only once: what came first is what a way back to flannel needs.
fn keep_foreign(path: &Path, wanted: &[u8]) -> Result<Option<PathBuf>, Error> {
    let is = |content: &[u8]| files::read_unlinked(path, content.len() as u64).is_ok_and(|there| there == content);
    if is(DEFAULT_CONFLIST) || is(wanted) {
        return Ok(None);
    }
    let kept = path.with_file_name(BEFORE);
    match std::fs::hard_link(path, &kept) {
        Ok(()) => Ok(Some(kept)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => Ok(None),
        Err(e) => Err(failed("keep, before it is replaced,", path)(e)),
    }
}

/// Writes a file unless it is there with the same content and mode. Whether it wrote.
fn put(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    files::sweep(files::folder(path), NEW);
    if files::is_there(path, content, mode) {
        return Ok(false);
    }
    let form = Form { mode, prefix: NEW, suffix: "", lasting: true };
    files::put(path, content, form).map_err(|e| failed(e.step, path)(e.source))?;
    Ok(true)
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { step, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn puts_both_in_place_and_leaves_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (bin, conf) = (root.path().join("opt/cni/bin"), root.path().join("etc/cni/net.d"));
        let plugin = root.path().join("built");
        fs::write(&plugin, "new").unwrap();
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join(PLUGIN), "flannel's own").unwrap();
        fs::write(bin.join("bridge"), "somebody else's").unwrap();
        let installed = install(&plugin, DEFAULT_CONFLIST, &bin, &conf).unwrap();
        assert!(installed.plugin.1 && installed.conflist.1);
        assert_eq!((files(&bin), files(&conf)), (vec!["bridge".into(), PLUGIN.into()], vec![CONFLIST.to_string()]));
        assert_eq!(fs::read(bin.join(PLUGIN)).unwrap(), b"new");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&installed.plugin.0), mode(&installed.conflist.0)), (0o755, 0o644));
        let again = install(&plugin, DEFAULT_CONFLIST, &bin, &conf).unwrap();
        assert!(!again.plugin.1 && !again.conflist.1);
    }

    #[test]
    fn what_a_killed_installer_left_goes_and_links_are_replaced() {
        let root = tempfile::tempdir().unwrap();
        let left = fs::File::create(root.path().join(".twill-old")).unwrap();
        left.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(600)).unwrap();
        fs::write(root.path().join("of-a-package"), "flannel's own").unwrap();
        std::os::unix::fs::symlink("of-a-package", root.path().join(PLUGIN)).unwrap();
        assert!(put(&root.path().join(PLUGIN), b"new", 0o755).unwrap());
        assert_eq!(files(root.path()), [PLUGIN, "of-a-package"]);
        assert_eq!(fs::read(root.path().join("of-a-package")).unwrap(), b"flannel's own");
    }

    #[test]
    fn a_configuration_of_somebody_else_is_kept_once() {
        let root = tempfile::tempdir().unwrap();
        let (dir, plugin) = (root.path().join("net.d"), root.path().join("built"));
        fs::create_dir(&dir).unwrap();
        fs::write(&plugin, "new").unwrap();
        let (conf, before) = (dir.join(CONFLIST), dir.join(BEFORE));
        let install = |conflist: &[u8]| install(&plugin, conflist, root.path(), &dir).unwrap();
        // What is there, what is wanted, what is kept after it.
        for (there, wanted, kept) in [
            ("", "built in", None),
            ("built in", "wanted", None),
            ("wanted", "wanted", None),
            ("flannel's", "built in", Some("flannel's")),
            ("edited", "wanted", Some("flannel's")),
        ] {
            let text =
                |name: &str| if name == "built in" { DEFAULT_CONFLIST.to_vec() } else { name.as_bytes().to_vec() };
            if !there.is_empty() {
                fs::write(&conf, text(there)).unwrap();
            }
            let installed = install(&text(wanted));
            assert_eq!(installed.kept, (there == "flannel's").then(|| before.clone()), "{there}");
            assert_eq!((fs::read(&conf).unwrap(), fs::read(&before).ok()), (text(wanted), kept.map(text)), "{there}");
        }
        // A link is kept as a link.
        fs::remove_file(&before).unwrap();
        fs::remove_file(&conf).unwrap();
        std::os::unix::fs::symlink("of-a-package", &conf).unwrap();
        let said = install(DEFAULT_CONFLIST).to_string();
        assert!(said.ends_with(&format!(", the one of before is {}", before.display())), "{said}");
        assert_eq!(fs::read_link(&before).unwrap(), Path::new("of-a-package"));
    }

    #[test]
    fn a_file_that_is_no_configuration_list_is_refused_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("mine.conflist");
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            read_conflist(&file).map_err(|e| e.to_string())
        };
        assert_eq!(read(std::str::from_utf8(DEFAULT_CONFLIST).unwrap()).unwrap(), DEFAULT_CONFLIST);
        for (text, why) in [
            ("", "not JSON: EOF"),
            ("[]", "no \"name\""),
            (r#"{"name":"","plugins":[{"type":"flannel"}]}"#, "no \"name\""),
            (r#"{"name":"n","type":"flannel"}"#, "no \"plugins\""),
            (r#"{"name":"n","plugins":[]}"#, "no \"plugins\""),
            (r#"{"name":"n","plugins":[{"type":"flannel"},{}]}"#, "each with a \"type\""),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.starts_with(&format!("use {}: not ", file.display())) && said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn no_plugin_leaves_no_configuration() {
        let root = tempfile::tempdir().unwrap();
        let error = install(&root.path().join("none"), DEFAULT_CONFLIST, root.path(), root.path()).unwrap_err();
        assert!(error.to_string().starts_with("read "), "{error}");
        assert!(files(root.path()).is_empty());
    }

    #[test]
    fn the_conflist_is_one_that_the_plugin_takes() {
        let list: serde_json::Value = serde_json::from_slice(DEFAULT_CONFLIST).unwrap();
        let mut own = list["plugins"][0].clone();
        assert_eq!(own["type"], PLUGIN);
        // As libcni makes a plugin's configuration of a list's.
        own["name"] = list["name"].clone();
        own["cniVersion"] = list["cniVersion"].clone();
        let conf = crate::cni::conf::NetConf::parse(own.to_string().as_bytes(), crate::cni::call::Verb::Add).unwrap();
        assert!(conf.at_least("0.4.0"));
    }
}
