//! A daemon whose log cannot be written: it serves its node, and counts what is lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use twill_lab::{Lab, NODE_CONFIG, Twilld, wait_until};

use crate::PATIENCE;

fn lab() -> Lab {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    lab
}

/// A twilld whose standard error is what the shell makes of `redirection`.
fn start(lab: &Lab, redirection: &str, args: &[&str]) -> Twilld {
    let script = format!("exec \"$@\" {redirection}");
    lab.node(1).twilld_under(&["sh", "-c", &script, "sh"], args)
}

/// It gets its subnet, logs on every occasion, mends what is broken, and stops cleanly; all that without its log.
#[track_caller]
fn serves_and_stops(lab: &Lab, daemon: &mut Twilld) {
    let node = lab.node(1);
    wait_until("subnet.env is there", PATIENCE, || node.subnet_file().exists());
    lab.etcd().kill();
    for signal in [Signal::SIGUSR1, Signal::SIGHUP] {
        daemon.signal(signal);
    }
    // To be mended it takes a daemon that runs; each round makes lines.
    for _ in 0..3 {
        node.exec("ip link del flannel.1").unwrap();
        wait_until("the device is back", PATIENCE, || {
            node.exec("ip -4 addr show dev flannel.1").is_ok_and(|shown| shown.contains("inet "))
        });
    }
    lab.etcd().start();
    let exit = daemon.terminate();
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
}

/// A FIFO and its reading end.
fn fifo(lab: &Lab) -> (PathBuf, File) {
    let path = lab.node(1).run_dir().join("log.fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
    (path, reader)
}

#[test]
fn a_full_disk_from_the_start_ends_nothing() {
    let lab = lab();
    let mut daemon = start(&lab, "2>/dev/full", &["-v=6"]);
    serves_and_stops(&lab, &mut daemon);
}

#[test]
fn a_closed_standard_error_ends_nothing() {
    let lab = lab();
    let mut daemon = start(&lab, "2>&- 1>&- 0>&-", &["-v=6"]);
    serves_and_stops(&lab, &mut daemon);
}

#[test]
fn a_reader_that_has_gone_ends_nothing() {
    let lab = lab();
    let (path, mut reader) = fifo(&lab);
    let mut daemon = start(&lab, &format!("2>{}", path.display()), &[]);
    wait_until("a first line", PATIENCE, || reader.read(&mut [0; 64]).is_ok_and(|length| length > 0));
    drop(reader);
    serves_and_stops(&lab, &mut daemon);
}

/// Fills a pipe to its last byte.
fn fill(path: &Path) {
    let mut writer = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap();
    for size in [4096, 1] {
        let full = loop {
            if let Err(error) = writer.write_all(&vec![b'#'; size]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_reader_that_does_not_read_stalls_nothing_and_gets_every_line_later() {
    let lab = lab();
    let (path, mut reader) = fifo(&lab);
    fill(&path);
    let mut daemon = start(&lab, &format!("2>{}", path.display()), &[]);
    let node = lab.node(1);
    wait_until("subnet.env is there", PATIENCE, || node.subnet_file().exists());
    node.exec("ip link del flannel.1").unwrap();
    wait_until("the device is back", PATIENCE, || node.exec("ip -4 addr show dev flannel.1").is_ok());
    let mut text = Vec::new();
    let mut read_until = |text: &mut Vec<u8>, word: &str| {
        wait_until(word, PATIENCE, || {
            // Nothing there now is an error of a reader that does not wait.
            let _ = reader.read_to_end(text);
            let text = String::from_utf8_lossy(text).into_owned();
            if text.contains(word) { Ok(()) } else { Err(text) }
        });
    };
    read_until(&mut text, "the daemon restored it");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(0));
    read_until(&mut text, "stopped");
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<&str> = text.trim_start_matches('#').lines().collect();
    assert!(lines[0].contains("version="), "the first line: {}", lines[0]);
    assert!(lines.last().unwrap().contains("stopped"), "{text}");
    assert!(!text.contains("lost"), "{text}");
}

#[test]
fn lines_that_found_no_room_are_counted_once_there_is_some() {
    let lab = lab();
    let node = lab.node(1);
    let log = node.run_dir().join("small.log");
    // A file of one block, which makes its writer's SIGXFSZ too: a full disk as far as the daemon can see.
    let script = format!("ulimit -f 1; exec \"$@\" 2>>{}", log.display());
    let mut daemon = node.twilld_under(&["sh", "-c", &script, "sh"], &[]);
    wait_until("subnet.env is there", PATIENCE, || node.subnet_file().exists());
    wait_until("the log is full", PATIENCE, || fs::metadata(&log).is_ok_and(|file| file.len() == 512));
    assert!(daemon.runs());
    // Until the number is there, without any other line.
    let told = wait_until("the number of lost lines", PATIENCE, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let told = text.lines().find(|line| line.contains("lines of this log are lost")).map(str::to_owned);
        if told.is_none() {
            File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        }
        told.ok_or(text)
    });
    assert!(told.contains(" lines=") && told.contains("File too large"), "{told}");
    daemon.signal(Signal::SIGUSR1);
    wait_until("the log goes on", PATIENCE, || fs::read_to_string(&log).is_ok_and(|text| text.contains("SIGUSR1")));
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_manager_that_does_not_read_its_socket_stalls_nothing() {
    let lab = lab();
    let path = lab.node(1).run_dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"full", &path).is_ok() {}
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let mut daemon = lab.node(1).twilld_under(&["env", &variable, "WATCHDOG_USEC=200000"], &[]);
    daemon.wait_ready();
    daemon.wait_log(&["cannot tell systemd"], PATIENCE);
    // Once it reads again, it hears all that it has to know.
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut told = String::new();
    wait_until("READY=1", PATIENCE, || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
        told += &String::from_utf8_lossy(&buffer[..length]);
        if told.contains("READY=1") && told.contains("STATUS=ready") { Ok(()) } else { Err(told.clone()) }
    });
    assert!(daemon.terminate().status.success());
}
