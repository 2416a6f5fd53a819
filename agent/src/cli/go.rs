//! Go's spelling of a command line, flannel's variables, and the flags of flannel that Twill has not.
//!
//! All three are made clap's before it looks: `-name` becomes `--name`, a flag with an empty value goes, a variable becomes
//! a flag that stands before the given ones, and a flag without sense here becomes an error that says what has.

use std::any::TypeId;
use std::ffi::OsString;
use std::io;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Error, Parser};

/// What a flag of flannel's that is not ours comes to.
enum Other {
    /// It asks for something that Twill has not; what to do instead.
    Refused(&'static str),
    /// It changes nothing here.
    Ignored,
}

const KUBE: &str = "subnets are leased through etcd: give --etcd-endpoints; there is no Kubernetes subnet manager yet";
const CONFIG: &str = "the network config is the key <etcd-prefix>/config in etcd (--etcd-endpoints, --etcd-prefix)";
const BACKEND: &str = "the backends are vxlan, host-gw and alloc: the network config needs one of them, as in {\"Backend\":{\"Type\":\"vxlan\"}}";
const REMOTE: &str =
    "flannel's client and server mode ended with v0.7: every node reads etcd itself (--etcd-endpoints)";
const NETWORKS: &str = "one daemon serves one network; start another one with its own --etcd-prefix and --subnet-file";

/// flannel's other flags, those of old versions too.
const OTHERS: [(&str, Other); 20] = [
    ("kube-subnet-mgr", Other::Refused(KUBE)),
    ("kube-api-url", Other::Refused(KUBE)),
    ("kubeconfig-file", Other::Refused(KUBE)),
    ("use-multi-cluster-cidr", Other::Refused(KUBE)),
    ("net-config-path", Other::Refused(CONFIG)),
    ("charon-executable-path", Other::Refused(BACKEND)),
    ("charon-vici-uri", Other::Refused(BACKEND)),
    ("listen", Other::Refused(REMOTE)),
    ("remote", Other::Refused(REMOTE)),
    ("remote-keyfile", Other::Refused(REMOTE)),
    ("remote-certfile", Other::Refused(REMOTE)),
    ("remote-cafile", Other::Refused(REMOTE)),
    ("networks", Other::Refused(NETWORKS)),
    ("watch-networks", Other::Refused(NETWORKS)),
    ("subnet-dir", Other::Refused(NETWORKS)),
    // They only say how the Kubernetes subnet manager works, which is off.
    ("kube-annotation-prefix", Other::Ignored),
    ("set-node-network-unavailable", Other::Ignored),
    // A MAC is taken from our record, so it lives on over reboots anyway.
    ("persistent-mac", Other::Ignored),
    ("vmodule", Other::Ignored),
    ("log_backtrace_at", Other::Ignored),
];

/// How the names of variables begin.
const VARIABLE: &str = "FLANNELD_";

/// Those of [`OTHERS`] that take no value of their own argument.
const SWITCHES: [&str; 4] =
    ["kube-subnet-mgr", "use-multi-cluster-cidr", "set-node-network-unavailable", "persistent-mac"];

/// Reads the process's command line and variables; on a mistake it says so on the terminal and ends the process with 2.
pub fn read<T: Parser>() -> T {
    let env = |name: &str| std::env::var(name).ok();
    let args = texts(&T::command(), std::env::args_os(), std::env::vars_os());
    args.and_then(|args| parse(args.into_iter(), env)).unwrap_or_else(|error| say_and_end(&error))
}

/// Prints help, the version or what is wrong, and ends the process: with 1 where asked for help cannot be printed.
fn say_and_end(error: &Error) -> ! {
    let is_lost = error.print().is_err_and(|failed| failed.kind() != io::ErrorKind::BrokenPipe);
    std::process::exit(if is_lost && !error.use_stderr() { 1 } else { error.exit_code() })
}

/// The arguments as text; an error for one that is none, and for such a variable of ours.
fn texts(
    command: &clap::Command,
    args: impl Iterator<Item = OsString>,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<String>, Error> {
    let bad = |what: &str, value: &OsString| {
        let text = format!("{what}: {value:?} is not UTF-8 text, which every value has to be\n");
        Error::raw(ErrorKind::InvalidUtf8, text).with_cmd(command)
    };
    for (name, value) in variables {
        let name = name.to_string_lossy();
        if name.starts_with(VARIABLE) && value.to_str().is_none() {
            return Err(bad(&name, &value));
        }
    }
    let text = |(at, arg): (usize, OsString)| arg.into_string().map_err(|arg| bad(&format!("argument {at}"), &arg));
    args.enumerate().map(text).collect()
}

/// [`read`] from given arguments (the program's name first) and variables.
pub(super) fn parse<T: Parser>(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<T, Error> {
    let command = T::command();
    let mut args = from_go(args, &command);
    drop_others(&mut args, &command)?;
    refuse_variables(&command, &env)?;
    let variables = from_variables(&mut args, &command, env);
    drop_empty(&mut args, &command);
    T::try_parse_from(args).map_err(|error| explain(error.with_cmd(&command), &variables))
}

/// Rewrites Go's `-name` and `-name=value` to `--name`, and `--v 2` to `-v=2`; leaves numbers, all behind `--`, and all
/// behind a subcommand with letters for flags, which may stand together (`-ic`).
fn from_go(args: impl Iterator<Item = String>, command: &clap::Command) -> Vec<String> {
    let has_letters = |name: &String| {
        command.find_subcommand(name).is_some_and(|sub| sub.get_arguments().any(|arg| arg.get_short().is_some()))
    };
    let mut rewritten: Vec<String> = Vec::new();
    let mut plain = false;
    for arg in args {
        plain |= arg == "--" || has_letters(&arg);
        let name = arg.strip_prefix('-').filter(|_| !plain);
        let Some(name) = name else {
            match rewritten.last_mut() {
                Some(last) if last == "-v" && !plain && arg.parse::<u8>().is_ok() => *last = format!("-v={arg}"),
                _ => rewritten.push(arg),
            }
            continue;
        };
        let bare = name.strip_prefix('-').unwrap_or(name);
        let long = bare.split('=').next().is_some_and(|name| name.len() > 1);
        let letter = bare.starts_with(|c: char| c.is_ascii_alphabetic());
        rewritten.push(match (long, letter) {
            (true, true) => format!("--{bare}"),
            (false, true) => format!("-{bare}"),
            _ => arg,
        });
    }
    rewritten
}

/// Takes out what changes nothing here, and refuses what asks for something that Twill has not.
fn drop_others(args: &mut Vec<String>, command: &clap::Command) -> Result<(), Error> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let mut at = 1;
    let mut end = end;
    while at < end {
        let (name, value) = split(&args[at]);
        let Some((name, other)) = OTHERS.iter().find(|(other, _)| Some(*other) == name) else {
            at += 1;
            continue;
        };
        let switch = SWITCHES.contains(name);
        let off = switch && value.is_some_and(|value| super::values::boolean(value) == Ok(false));
        let apart = !switch && value.is_none() && args.get(at + 1).is_some_and(|next| !next.starts_with('-'));
        let empty = !switch && (value == Some("") || (apart && args[at + 1].is_empty()));
        let off = off || empty;
        if let (Other::Refused(instead), false) = (other, off) {
            return Err(refusal(command, &format!("--{name}"), instead));
        }
        let count = 1 + usize::from(apart);
        args.drain(at..at + count);
        end -= count;
    }
    Ok(())
}

/// The same for variables.
fn refuse_variables(command: &clap::Command, env: &impl Fn(&str) -> Option<String>) -> Result<(), Error> {
    for (name, other) in &OTHERS {
        let variable = variable(name);
        let value = env(&variable).filter(|value| !value.is_empty());
        let off = SWITCHES.contains(name) && value.as_deref().is_some_and(|v| super::values::boolean(v) == Ok(false));
        if let (Other::Refused(instead), Some(_), false) = (other, value, off) {
            return Err(refusal(command, &variable, instead));
        }
    }
    Ok(())
}

/// Takes out flags with an empty value, which is Go's way to say that there is none. A number or a switch has to have one.
fn drop_empty(args: &mut Vec<String>, command: &clap::Command) {
    let is_text = |arg: &clap::Arg| {
        let numbers = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u64>()];
        let required = arg.get_num_args().is_none_or(|count| count.min_values() > 0);
        required && arg.get_action().takes_values() && !numbers.iter().any(|n| arg.get_value_parser().type_id() == *n)
    };
    let texts: Vec<&str> = command.get_arguments().filter(|arg| is_text(arg)).filter_map(clap::Arg::get_long).collect();
    let mut kept = Vec::new();
    let mut rest = std::mem::take(args).into_iter().peekable();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            kept.push(arg);
            break;
        }
        let (name, value) = split(&arg);
        let text = name.is_some_and(|name| texts.contains(&name));
        match value {
            Some("") if text => {}
            None if text && rest.next_if(String::is_empty).is_some() => {}
            _ => kept.push(arg),
        }
    }
    kept.extend(rest);
    *args = kept;
}

fn refusal(command: &clap::Command, what: &str, instead: &str) -> Error {
    Error::raw(ErrorKind::UnknownArgument, format!("{what} makes no sense here: {instead}\n")).with_cmd(command)
}

/// Puts variables before the arguments as flags, where the flag is not given. Returns the flags that came so.
fn from_variables(
    args: &mut Vec<String>,
    command: &clap::Command,
    env: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut from = Vec::new();
    for arg in command.get_arguments() {
        let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let letter = arg.get_short().map(String::from).unwrap_or_default();
        let (name, flag) = match arg.get_long() {
            Some(long) => (long, format!("--{long}")),
            None => (letter.as_str(), format!("-{letter}")),
        };
        if name.is_empty() || !takes_value {
            continue;
        }
        let is_it = |arg: &String| arg.split('=').next() == Some(&flag);
        let given = args.iter().take_while(|arg| *arg != "--").any(is_it);
        let value = env(&variable(name)).filter(|value| !value.is_empty());
        if let (Some(value), false) = (value, given) {
            args.insert(1.min(args.len()), format!("{flag}={value}"));
            from.push(flag);
        }
    }
    from
}

/// Adds to an error where its value came from, or how a boolean is written.
fn explain(mut error: Error, variables: &[String]) -> Error {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
    let name = arg.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let tip = if variables.contains(&name) {
        Some(format!("the value is that of the variable {}", variable(name.trim_start_matches('-'))))
    } else if super::values::boolean(arg).is_ok() {
        Some(format!("a switch takes its value behind a `=`, as in --ip-masq={arg}"))
    } else {
        None
    };
    if let Some(tip) = tip {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// The name and the value of `--name=value`.
fn split(arg: &str) -> (Option<&str>, Option<&str>) {
    let Some(rest) = arg.strip_prefix("--") else { return (None, None) };
    match rest.split_once('=') {
        Some((name, value)) => (Some(name), Some(value)),
        None => (Some(rest), None),
    }
}

/// A flag's variable, as flannel names it.
fn variable(flag: &str) -> String {
    format!("{VARIABLE}{}", flag.replace('-', "_").to_uppercase())
}
