//! What an earlier flannel left in iptables-legacy, which keeps its rules outside of nf_tables.
//!
//! Only iptables-legacy's own programs read and write them: the kernel takes whole tables in the programs' own form. They are run
//! for tables that are in use already, since a look at another one makes it (and loads its module). What the chains come to
//! is decided in `chains`.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ipnetwork::IpNetwork;
use netlink_packet_netfilter::NetfilterProtoFamily;

use super::chains::{Act, Chain, Chains, HARMLESS_TARGETS, Hook, Leftover, Ours, Removal, Rule};

/// A family's programs, and where the kernel lists the tables that are in use in this network namespace.
struct Tool {
    family: NetfilterProtoFamily,
    in_use: &'static str,
    save: &'static str,
    restore: &'static str,
}

const TOOLS: [Tool; 2] = [
    Tool {
        family: NetfilterProtoFamily::IPv4,
        in_use: "/proc/self/net/ip_tables_names",
        save: "iptables-legacy-save",
        restore: "iptables-legacy-restore",
    },
    Tool {
        family: NetfilterProtoFamily::IPv6,
        in_use: "/proc/self/net/ip6_tables_names",
        save: "ip6tables-legacy-save",
        restore: "ip6tables-legacy-restore",
    },
];
/// Where flannel's chains are.
const TABLES: [&str; 2] = ["nat", "filter"];
/// How long to wait for others to let go of iptables' lock.
const LOCK: &str = "--wait=5";

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Every chain, with its rules.
    pub chains: Chains,
    /// The lines behind the rules, which a rule's handle counts.
    lines: Vec<String>,
    /// Tables are in use, and this program to read them is not here.
    pub missing: Vec<&'static str>,
    /// What could not be read, and why.
    pub failed: Vec<String>,
}

/// Reads the tables that flannel uses, where they are in use.
pub(super) fn read() -> Look {
    let mut look = Look::default();
    for tool in &TOOLS {
        let in_use = match std::fs::read_to_string(Path::new(tool.in_use)) {
            Ok(tables) => tables,
            // The kernel has no iptables-legacy.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                look.failed.push(format!("{}: {error}", tool.in_use));
                continue;
            }
        };
        for table in TABLES.into_iter().filter(|table| in_use.lines().any(|line| line == *table)) {
            match run(Command::new(tool.save).args(["-t", table]), None) {
                Ok(text) => look.take(tool.family, table, &text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => look.missing.push(tool.save),
                Err(error) => look.failed.push(format!("{} -t {table}: {error}", tool.save)),
            }
        }
    }
    look.missing.dedup();
    look
}

/// Removes an earlier flannel's chains of which Twill has its own, each at once with its calls.
pub(super) fn remove_flannel_s(look: &Look, ours: Ours) -> Removal {
    let delete = |left: &Leftover<'_>| {
        let tool = TOOLS.iter().find(|tool| tool.family == left.chain.family).ok_or("no program for its family")?;
        let input = look.deletion(left);
        let run = run(Command::new(tool.restore).args(["--noflush", LOCK]), Some(&input));
        run.map(drop).map_err(|error| format!("{}: {error}", tool.restore))
    };
    look.chains.remove_leftovers(ours, |chain| format!("chain {chain} of iptables-legacy"), delete)
}

impl Look {
    /// Takes in what iptables-save prints of a table.
    fn take(&mut self, family: NetfilterProtoFamily, table: &str, text: &str) {
        let chain = |line: &str| {
            let (name, rest) = line.split_once(' ')?;
            let policy = rest.split(' ').next()?;
            let hook = match (policy, name) {
                ("-", _) => Hook::None,
                (_, "FORWARD") => Hook::Forward,
                _ => Hook::Other,
            };
            let (table, name, drops) = (table.to_owned(), name.to_owned(), policy == "DROP");
            Some(Chain { family, table, name, hook, drops, rules: Vec::new() })
        };
        let mut chains: Vec<Chain> = text.lines().filter_map(|line| chain(line.strip_prefix(':')?)).collect();
        let names: Vec<String> = chains.iter().map(|chain| chain.name.clone()).collect();
        for line in text.lines().filter(|line| line.starts_with("-A ")) {
            let words = words(line);
            let Some(chain) = words.get(1).and_then(|name| chains.iter_mut().find(|chain| chain.name == *name)) else {
                continue;
            };
            chain.rules.push(rule(&words[2..], self.lines.len() as u64, &names));
            self.lines.push(line.to_owned());
        }
        self.chains.0.extend(chains);
    }

    /// What iptables-restore is told: one table, changed at once or not at all.
    fn deletion(&self, left: &Leftover<'_>) -> String {
        let Chain { table, name, .. } = left.chain;
        let lines = left.calls.iter().filter_map(|(_, rule)| self.lines.get(rule.handle as usize));
        let calls: String = lines.map(|line| line.replacen("-A", "-D", 1) + "\n").collect();
        format!("*{table}\n{calls}-F {name}\n-X {name}\nCOMMIT\n")
    }
}

fn rule(words: &[String], handle: u64, chains: &[String]) -> Rule {
    let mut rule = Rule { handle, act: Act::Nothing, nets: Vec::new(), conditions: false };
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-s" | "-d" => match words.next().and_then(|net| net.parse::<IpNetwork>().ok()) {
                Some(net) => rule.nets.push(net),
                None => rule.conditions = true,
            },
            "-m" => rule.conditions |= words.next() != Some("comment"),
            "--comment" => drop(words.next()),
            // The last but for what belongs to the target.
            "-j" | "-g" => {
                rule.act = act(words.next().unwrap_or_default(), chains);
                return rule;
            }
            // It turns the sense of what comes: all but that network.
            "!" => {
                rule.conditions = true;
                if words.clone().next().is_some_and(|word| matches!(word, "-s" | "-d")) {
                    words.next();
                    words.next();
                }
            }
            _ => rule.conditions = true,
        }
    }
    rule
}

fn act(target: &str, chains: &[String]) -> Act {
    match target {
        "ACCEPT" => Act::Accept,
        "DROP" | "REJECT" => Act::Drop,
        "RETURN" => Act::Return,
        _ if HARMLESS_TARGETS.contains(&target) => Act::Nothing,
        _ if chains.iter().any(|chain| chain == target) => Act::Call(target.to_owned()),
        _ => Act::Unknown,
    }
}

/// The words of a line, as iptables-save quotes them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(chars.next()),
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    words.push(word);
    words
}

/// Runs a program to its end; what it printed, or its complaint.
fn run(command: &mut Command, input: Option<&str>) -> io::Result<String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C").spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may end without having read all: then it says why.
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&stderr);
    Err(io::Error::other(format!("{status}: {}", complaint.lines().next().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [1:60]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld \"forward\"" -j FLANNEL-FWD
-A FORWARD -j REJECT --reject-with icmp-port-unreachable
-A FORWARD ! -s 10.0.0.0/8 -i eth0 -j DOCKER
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

    fn look(text: &str) -> Look {
        let mut look = Look::default();
        look.take(NetfilterProtoFamily::IPv4, "filter", text);
        look
    }

    #[test]
    fn a_saved_table_is_read() {
        let look = look(SAVED);
        let chains = &look.chains.0;
        assert_eq!((chains[1].hook, chains[1].drops, chains[2].hook), (Hook::Forward, true, Hook::None));
        let rule =
            |act, nets: &[&str], conditions| (act, nets.iter().map(|n| n.parse().unwrap()).collect(), conditions);
        let of = |rule: &Rule| (rule.act.clone(), rule.nets.clone(), rule.conditions);
        let forward: Vec<(Act, Vec<IpNetwork>, bool)> = chains[1].rules.iter().map(of).collect();
        assert_eq!(
            forward,
            [
                rule(Act::Call("FLANNEL-FWD".into()), &[], false),
                rule(Act::Drop, &[], false),
                rule(Act::Unknown, &[], true)
            ]
        );
        assert_eq!(of(&chains[2].rules[0]), rule(Act::Accept, &["10.5.0.0/16"], false));
    }

    #[test]
    fn a_negated_condition_hides_no_drop() {
        for rule in ["-m physdev ! --physdev-is-bridged -j DROP", "! -f -j DROP", "! -s 10.0.0.0/8 -j DROP"] {
            let look = look(&format!("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule}\nCOMMIT\n"));
            let read = &look.chains.0[0].rules[0];
            assert_eq!((&read.act, &read.nets[..], read.conditions), (&Act::Drop, &[][..], true), "{rule}");
        }
    }

    #[test]
    fn a_chain_goes_with_its_calls_as_they_were_saved() {
        let look = look(SAVED);
        let ours = Ours { masquerade: false, forward: true };
        let left = look.chains.leftovers(ours).next().unwrap();
        assert!(left.needed);
        assert_eq!(
            look.deletion(&left),
            "*filter\n-D FORWARD -m comment --comment \"flanneld \\\"forward\\\"\" -j FLANNEL-FWD\n-F FLANNEL-FWD\n-X FLANNEL-FWD\nCOMMIT\n"
        );
    }
}
