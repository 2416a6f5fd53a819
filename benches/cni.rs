//! What the CNI plugin `flannel` costs a pod: beside a program that does nothing, and beside the reference `bridge`.
//!
//! Needs root, the reference plugins in /usr/lib/cni, and `flannel` built with the same profile. Each time is from
//! starting the plugin to its end; data directories are on the disk, so synced writes count. `--rounds N` (100).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{UsageWho, getrusage};

/// The delegate that does nothing: this program under another name.
const NOTHING: &str = "nothing";
const RESULT: &[u8] = br#"{"cniVersion":"1.0.0","ips":[]}"#;

/// Runs the words behind it and prints their peak memory.
const PEAK: &str = "--peak";

const PLUGINS: &str = "/usr/lib/cni";
const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Issue 7's: an ADD with a delegate that does nothing.
const WALL: Duration = Duration::from_millis(5);
const MEMORY_KIB: i64 = 5 << 10;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args[0].ends_with(NOTHING) {
        return Ok(std::io::stdout().write_all(RESULT)?);
    }
    if args.get(1).is_some_and(|arg| arg == PEAK) {
        return peak(&args[2..]);
    }
    let rounds = args.iter().skip_while(|arg| *arg != "--rounds").nth(1);
    let rounds: usize = rounds.map_or(Ok(100), |text| text.parse()).context("--rounds wants a number")?;
    let stage = Stage::new()?;
    let result = stage.measure(rounds);
    // The namespaces carry this process's number, as the lab's do.
    twill_lab::remove_own();
    result
}

/// Files and namespaces of one run.
struct Stage {
    dir: tempfile::TempDir,
    flannel: PathBuf,
    node: String,
    pod: String,
}

/// The times of one kind of call, shortest first.
struct Times(Vec<Duration>);

impl Stage {
    fn new() -> Result<Stage> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run as root");
        let own = std::env::current_exe()?;
        let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("flannel")).find(|path| path.is_file());
        let flannel = found.context("no flannel beside this program: run `cargo build --release --bins` first")?;
        // Not the usual place for temporary files, which is often in memory.
        let dir = tempfile::tempdir_in(own.parent().unwrap_or(Path::new(".")))?;
        fs::write(dir.path().join("subnet.env"), ENV)?;
        symlink(&own, dir.path().join(NOTHING))?;
        let [node, pod] = ["node", "pod"].map(|part| format!("tw{}-bench-{part}", std::process::id()));
        for name in [&node, &pod] {
            let made = Command::new("flock").args(["/run/twill-lab.lock", "ip", "netns", "add", name]).status()?;
            ensure!(made.success(), "ip netns add {name} failed");
        }
        Ok(Stage { dir, flannel, node, pod })
    }

    fn measure(&self, rounds: usize) -> Result<()> {
        // This program has one thread, and everything that it starts belongs there.
        setns(fs::File::open(format!("/run/netns/{}", self.node))?, CloneFlags::CLONE_NEWNET)?;
        let dir = self.dir.path();
        let conf = |delegate: &str| {
            format!(
                r#"{{"cniVersion":"1.0.0","name":"bench","subnetFile":"{0}/subnet.env","dataDir":"{0}/data","ipam":{{"dataDir":"{0}/ipam"}},"delegate":{{"type":"{delegate}"}}}}"#,
                dir.display()
            )
        };
        // What flannel renders for the bridge.
        let bridge = format!(
            r#"{{"cniVersion":"1.0.0","name":"bench","type":"bridge","isGateway":true,"ipMasq":false,"mtu":1450,"ipam":{{"type":"host-local","dataDir":"{}/ipam","ranges":[[{{"subnet":"10.5.52.0/24"}}]],"routes":[{{"dst":"10.5.0.0/16"}}]}}}}"#,
            dir.display()
        );
        let (own, reference) = (dir.to_path_buf(), PathBuf::from(PLUGINS));
        let cases: [(&str, PathBuf, String); 4] = [
            ("a delegate that does nothing", own.join(NOTHING), String::new()),
            ("flannel, with that one", self.flannel.clone(), conf(NOTHING)),
            ("bridge and host-local", reference.join("bridge"), bridge),
            ("flannel, with those", self.flannel.clone(), conf("bridge")),
        ];
        let mut times: Vec<[Times; 2]> = cases.iter().map(|_| [Times(Vec::new()), Times(Vec::new())]).collect();
        // Those compared take turns, so that a busy moment is nobody's own.
        for _ in 0..rounds {
            for ((_, program, conf), times) in cases.iter().zip(&mut times) {
                for (verb, times) in ["ADD", "DEL"].into_iter().zip(times) {
                    times.0.push(self.call(program, verb, conf)?);
                }
            }
        }
        println!("{:32} {:>9} {:>9} {:>9} {:>9}", "ms", "ADD least", "median", "DEL least", "median");
        for ((name, ..), [add, del]) in cases.iter().zip(&mut times) {
            let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
            let [add, del] = [add.sorted(), del.sorted()];
            println!("{name:32} {:>9} {:>9} {:>9} {:>9}", ms(add.0), ms(add.1), ms(del.0), ms(del.1));
        }
        let memory = self.peak_of(&cases[1])?;
        let wall = times[1][0].sorted().1;
        let verdict = if wall < WALL && memory < MEMORY_KIB { "reached" } else { "missed" };
        println!("\nflannel's peak memory is at most {memory} KiB. The target (5 ms, 5 MiB) is {verdict}.");
        Ok(())
    }

    fn command(&self, program: &Path, verb: &str) -> Command {
        let mut command = Command::new(program);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "bench").env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", format!("/run/netns/{}", self.pod));
        command.env("CNI_PATH", format!("{}:{PLUGINS}", self.dir.path().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn call(&self, program: &Path, verb: &str, conf: &str) -> Result<Duration> {
        let mut command = self.command(program, verb);
        let start = Instant::now();
        let output = speak(&mut command, conf)?;
        let took = start.elapsed();
        ensure!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
        Ok(took)
    }

    /// By a small process of its own: what a parent holds when it forks counts as its child's.
    fn peak_of(&self, (_, program, conf): &(&str, PathBuf, String)) -> Result<i64> {
        let mut command = self.command(&std::env::current_exe()?, "ADD");
        let output = speak(command.arg(PEAK).arg(program), conf)?;
        let text = String::from_utf8(output.stdout)?;
        self.call(program, "DEL", conf)?;
        text.trim().parse().with_context(|| format!("a number in {text}"))
    }
}

impl Times {
    /// The least and the median.
    fn sorted(&mut self) -> (Duration, Duration) {
        self.0.sort_unstable();
        let at = |index: usize| self.0.get(index).copied().unwrap_or_default();
        (at(0), at(self.0.len() / 2))
    }
}

fn speak(command: &mut Command, input: &str) -> Result<std::process::Output> {
    let mut child = command.spawn()?;
    // The one that does nothing may have ended by now.
    let _ = child.stdin.take().context("no pipe")?.write_all(input.as_bytes());
    Ok(child.wait_with_output()?)
}

fn peak(words: &[String]) -> Result<()> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let output = speak(Command::new(&words[0]).stdin(Stdio::piped()).stdout(Stdio::piped()), &input)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // In KiB on Linux, see getrusage(2).
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}
