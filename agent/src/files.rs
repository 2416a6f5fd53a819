//! Files as the three programs read and write them. Reading waits for nobody (a FIFO), fills no memory (`/dev/zero`) and
//! sets no device off; writing goes through no link and shows a reader the old file or the new one, whole.
//!
//! Knows nothing of what the files hold.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

/// Enough for what a person or a daemon writes by hand: `subnet.env`, an id, a status.
pub(crate) const SMALL: u64 = 64 << 10;

/// Enough for the certificates of all authorities that a system knows (some 250 KiB).
pub(crate) const CERTIFICATES: u64 = 4 << 20;

/// So old a file that is being written is one that nobody writes any more.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// How a file is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form<'a> {
    /// The permissions, whatever the umask is.
    pub(crate) mode: u32,
    /// Begins the name under which the file is written, before random letters.
    pub(crate) prefix: &'a str,
    /// Ends that name.
    pub(crate) suffix: &'a str,
    /// Whether the file is on the disk when the call returns. Costs milliseconds on a disk.
    pub(crate) lasting: bool,
}

/// A step of writing a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(crate) struct PutError {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

/// The content of a regular file of at most `most` bytes; a link is followed.
///
/// # Errors
/// Those of opening and reading; `InvalidInput` for anything but a regular file, `FileTooLarge` for a longer one.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    regular(&fs::metadata(path)?)?;
    read_opened(path, most, 0)
}

/// The same for a file that only we put there, in a folder where others may put links: a link is an error.
pub(crate) fn read_unlinked(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    regular(&fs::symlink_metadata(path)?)?;
    read_opened(path, most, libc::O_NOFOLLOW)
}

/// The file may have become another one since it was looked at, so opening it waits for nobody, and it is looked at again.
fn read_opened(path: &Path, most: u64, flags: i32) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    regular(&file.metadata()?)?;
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes")));
    }
    Ok(content)
}

fn regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

/// Whether a regular file with just this content and mode is at `path`; one behind a link is not.
pub(crate) fn is_there(path: &Path, content: &[u8], mode: u32) -> bool {
    let same =
        |metadata: Metadata| metadata.len() == content.len() as u64 && metadata.permissions().mode() & 0o7777 == mode;
    fs::symlink_metadata(path).is_ok_and(same)
        && read_unlinked(path, content.len() as u64).is_ok_and(|there| there == content)
}

/// Puts a new file in the place of whatever is at `path`, a link too. Makes the folder if there is none.
///
/// # Errors
/// The step that failed. `path` is then as it was, and nothing else stays.
pub(crate) fn put(path: &Path, content: &[u8], form: Form<'_>) -> Result<(), PutError> {
    let folder = folder(path);
    make_folder(folder, 0o755).map_err(failed("make the folder of"))?;
    let written = write_aside(folder, content, form)?;
    written.persist(path).map_err(|e| failed("replace")(e.error))?;
    if form.lasting { sync_folder(folder) } else { Ok(()) }
}

/// A file with this content and form in `folder`, which goes unless it gets a name.
pub(crate) fn write_aside(folder: &Path, content: &[u8], form: Form<'_>) -> Result<NamedTempFile, PutError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(form.prefix).suffix(form.suffix);
    // Neither `tempfile_in` nor `NamedTempFile::write`: both put the random name into their errors, so a failure that lasts
    // would have another text each time, and both hide the system's error number.
    let mut create = OpenOptions::new();
    create.read(true).write(true).create_new(true).mode(0o600);
    let file = builder.make_in(folder, |path| create.open(path)).map_err(failed("write"))?;
    file.as_file().write_all(content).map_err(failed("write"))?;
    file.as_file().set_permissions(Permissions::from_mode(form.mode)).map_err(failed("set the mode of"))?;
    if form.lasting {
        file.as_file().sync_all().map_err(failed("sync"))?;
    }
    Ok(file)
}

/// Makes the names in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), PutError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of"))
}

/// Makes a folder and those above it. With no umask at all they are still ours alone to write.
pub(crate) fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(folder)
}

/// The folder of a file.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what a program that was killed left half written, by the beginning of its name. Best effort: such a file does
/// no harm but that it is there.
pub(crate) fn sweep(folder: &Path, prefix: &str) {
    let begins = |name: &OsStr| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    let old = |file: &fs::DirEntry| {
        let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        begins(&file.file_name()) && age.is_some_and(|age| age >= LEFT_BEHIND)
    };
    for file in fs::read_dir(folder).into_iter().flatten().flatten().filter(old) {
        let _ = fs::remove_file(file.path());
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> PutError {
    move |source| PutError { step, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const FORM: Form<'static> = Form { mode: 0o644, prefix: ".new-", suffix: "", lasting: false };

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn reads_regular_files_of_a_length_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "12345").unwrap();
        symlink("file", path("link")).unwrap();
        symlink("/dev/zero", path("endless")).unwrap();
        symlink("loop", path("loop")).unwrap();
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(path("folder")).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        for read in [read, read_unlinked] {
            assert_eq!(read(&path("file"), 5).unwrap(), b"12345");
            assert_eq!(read(&path("file"), 4).unwrap_err().to_string(), "longer than 4 bytes");
            for other in ["fifo", "folder", "socket", "endless"] {
                assert_eq!(read(&path(other), 5).unwrap_err().to_string(), "not a regular file", "{other}");
            }
            assert!(read(&path("loop"), 5).is_err());
            assert_eq!(read(&path("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        assert_eq!(read(&path("link"), 5).unwrap(), b"12345");
        assert_eq!(read_unlinked(&path("link"), 5).unwrap_err().to_string(), "not a regular file");
    }

    #[test]
    fn what_becomes_a_fifo_or_a_link_meanwhile_is_not_waited_for_nor_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, link) = (dir.path().join("fifo"), dir.path().join("link"));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert_eq!(read_opened(&fifo, 5, 0).unwrap_err().to_string(), "not a regular file");
        symlink("/dev/zero", &link).unwrap();
        assert_eq!(read_opened(&link, 5, libc::O_NOFOLLOW).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn puts_a_new_file_in_the_place_of_whatever_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("target"), "theirs").unwrap();
        symlink("target", path("link")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        fs::write(path("linked"), "theirs").unwrap();
        fs::hard_link(path("linked"), path("other-name")).unwrap();
        for (name, lasting) in [("link", false), ("dangling", true), ("fifo", false), ("linked", true), ("new", false)]
        {
            put(&path(name), b"ours", Form { lasting, ..FORM }).unwrap();
            let metadata = fs::symlink_metadata(path(name)).unwrap();
            assert!(metadata.is_file() && !metadata.file_type().is_fifo(), "{name}");
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o644);
            assert!(is_there(&path(name), b"ours", 0o644));
        }
        for theirs in ["target", "other-name"] {
            assert_eq!(fs::read(path(theirs)).unwrap(), b"theirs", "{theirs}");
        }
        let all = ["dangling", "fifo", "link", "linked", "new", "other-name", "target"];
        assert_eq!(names(dir.path()), all);
    }

    #[test]
    fn a_folder_may_be_a_link_and_is_made_if_it_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        symlink("run", dir.path().join("var-run")).unwrap();
        put(&dir.path().join("var-run/flannel/file"), b"ours", FORM).unwrap();
        assert_eq!(fs::read(dir.path().join("run/flannel/file")).unwrap(), b"ours");
        assert_eq!(folder(Path::new("file")), Path::new("."));
    }

    #[test]
    fn what_cannot_be_put_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("taken/by-a-folder")).unwrap();
        let error = put(&dir.path().join("taken"), b"ours", FORM).unwrap_err();
        assert_eq!((error.step, names(dir.path())), ("replace", vec!["taken".to_string()]));
        fs::write(dir.path().join("file"), "").unwrap();
        let error = put(&dir.path().join("file/below"), b"ours", FORM).unwrap_err();
        assert_eq!(error.step, "make the folder of");
    }

    /// Who compares two errors must see that a failure lasts.
    #[test]
    fn a_failure_that_lasts_has_the_same_text_and_number_each_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("taken")).unwrap();
        let long = "l".repeat(255);
        for (path, prefix, errno) in [
            // Nobody can make a file there, root neither.
            (Path::new("/proc/self/file"), ".new-", libc::ENOENT),
            (&dir.path().join("file"), &*long, libc::ENAMETOOLONG),
            (&dir.path().join("taken"), ".new-", libc::EISDIR),
        ] {
            let fails = || put(path, b"ours", Form { prefix, ..FORM }).unwrap_err();
            let (first, second) = (fails(), fails());
            assert_eq!(first.to_string(), second.to_string());
            assert_eq!(first.source.raw_os_error(), Some(errno), "{first}");
        }
    }

    #[test]
    fn what_differs_in_content_mode_or_kind_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        put(&path, b"ours", FORM).unwrap();
        symlink("file", &link).unwrap();
        assert!(is_there(&path, b"ours", 0o644));
        assert!(
            !is_there(&path, b"our", 0o644) && !is_there(&path, b"OURS", 0o644) && !is_there(&path, b"ours", 0o755)
        );
        assert!(!is_there(&link, b"ours", 0o644) && !is_there(&dir.path().join("none"), b"ours", 0o644));
    }

    #[test]
    fn sweeps_what_is_old_and_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, age: Duration| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        };
        file(".new-old", LEFT_BEHIND);
        file(".new-being-written", Duration::ZERO);
        file(".other", LEFT_BEHIND);
        sweep(dir.path(), FORM.prefix);
        assert_eq!(names(dir.path()), [".new-being-written", ".other"]);
        sweep(&dir.path().join("none"), FORM.prefix);
    }
}
