//! `twill install-cni`: puts the plugin and its configuration where the runtime looks, as an init container does.
//!
//! Both are written beside their place and renamed, so a runtime sees the old or the new one, whole, and a plugin that
//! is running goes on. The plugin first: the configuration is what makes a node ready for pods.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The plugin's name, which is also its `type` in a configuration.
pub const PLUGIN: &str = "flannel";

/// The configuration's name: flannel's own, so that it takes its place and does not stand beside it.
pub const CONFLIST: &str = "10-flannel.conflist";

/// Begins the names of files that are being written.
const NEW: &str = ".twill-";

/// So old a file that is being written is one that nobody writes any more.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// flannel and portmap.
const DEFAULT_CONFLIST: &[u8] = include_bytes!("../../deploy/cni/10-flannel.conflist");

/// What is in place now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The plugin, and whether it was any different.
    pub plugin: (PathBuf, bool),
    /// The configuration, and whether it was any different.
    pub conflist: (PathBuf, bool),
}

impl std::fmt::Display for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [plugin, conflist] = [&self.plugin, &self.conflist].map(|(path, changed)| {
            format!("{} {}", path.display(), if *changed { "installed" } else { "is up to date" })
        });
        write!(f, "{plugin}, {conflist}")
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

/// Installs the `flannel` beside this program, and the configuration that is built in.
pub fn install_cni(bin_dir: &Path, conf_dir: &Path) -> Result<Installed, Error> {
    let own = std::env::current_exe().map_err(failed("find", Path::new("this program")))?;
    install(&own.with_file_name(PLUGIN), DEFAULT_CONFLIST, bin_dir, conf_dir)
}

/// Installs the plugin at `plugin` and a configuration, one that the operator wrote for example.
pub fn install(plugin: &Path, conflist: &[u8], bin_dir: &Path, conf_dir: &Path) -> Result<Installed, Error> {
    let program = fs::read(plugin).map_err(failed("read", plugin))?;
    let (plugin, conf) = (bin_dir.join(PLUGIN), conf_dir.join(CONFLIST));
    let new_plugin = put(&plugin, &program, 0o755)?;
    let new_conf = put(&conf, conflist, 0o644)?;
    Ok(Installed { plugin: (plugin, new_plugin), conflist: (conf, new_conf) })
}

/// Writes a file unless it is there with the same content and mode. Whether it wrote.
fn put(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    sweep(dir);
    let same = fs::read(path).is_ok_and(|there| there == content)
        && fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o7777 == mode);
    if same {
        return Ok(false);
    }
    fs::create_dir_all(dir).map_err(failed("make", dir))?;
    // With no ending that a runtime takes for a configuration's.
    let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(dir).map_err(failed("write in", dir))?;
    file.write_all(content).map_err(failed("write", path))?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(failed("set the mode of", path))?;
    file.as_file().sync_all().map_err(failed("sync", path))?;
    file.persist(path).map_err(|e| failed("replace", path)(e.error))?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
    Ok(true)
}

/// Removes what an installer that was killed left behind. Best effort: it does no harm but that it is there.
fn sweep(dir: &Path) {
    let old = |file: &fs::DirEntry| {
        let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        file.file_name().to_string_lossy().starts_with(NEW) && age.is_some_and(|age| age >= LEFT_BEHIND)
    };
    for file in fs::read_dir(dir).into_iter().flatten().flatten().filter(old) {
        let _ = fs::remove_file(file.path());
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { step, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
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
    fn what_a_killed_installer_left_goes() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, age: Duration| {
            let file = fs::File::create(root.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        };
        file(".twill-old", LEFT_BEHIND);
        file(".twill-being-written", Duration::ZERO);
        file(".other", LEFT_BEHIND);
        put(&root.path().join(PLUGIN), b"new", 0o755).unwrap();
        assert_eq!(files(root.path()), [".other", ".twill-being-written", PLUGIN]);
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
        let conf = crate::cni::conf::NetConf::parse(own.to_string().as_bytes()).unwrap();
        assert!(conf.at_least("0.4.0"));
    }
}
