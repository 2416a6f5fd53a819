//! Who may touch what: the sources of the agent, read as text.
//!
//! A rule says which files may not name which paths. The reader expands `use` trees and ignores comments and strings,
//! so `use std::{fs, net};` counts as `std::fs`. It knows no aliases: `use std as s` would get past it, and past no
//! reviewer.

#[path = "layers_circles.rs"]
mod circles;

use std::fs;
use std::path::{Path, PathBuf};

/// What the pure part must do without: input, output, the clock and the environment.
const IMPURE: &[&str] = &[
    "tokio",
    "netlink_ext",
    "rtnetlink",
    "netlink_*",
    "etcd_client",
    "std::fs",
    "std::env",
    "std::process",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::os",
    "*::Instant::now",
    "*::SystemTime::now",
];

const NETLINK: &[&str] = &["netlink_ext", "rtnetlink", "netlink_*"];

/// The layers between `overlay` and the event loop. None knows another.
const MIDDLE: &[&str] = &["store", "dataplane", "handoff", "http", "masquerade"];

/// All `.rs` files below the agent's `src`, by their path from there, with the paths they name.
fn agent() -> Vec<(PathBuf, Vec<String>)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    assert!(!files.is_empty(), "no sources in {}", src.display());
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
            (path.strip_prefix(&src).unwrap_or(&path).to_path_buf(), paths(&text))
        })
        .collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display()));
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Panics with a list if a file that `bound` holds for names a forbidden path.
#[track_caller]
fn forbid(bound: impl Fn(&Path) -> bool, forbidden: &[&str], why: &str) {
    let mut found = Vec::new();
    for (file, paths) in agent() {
        for path in paths.iter().filter(|_| bound(&file)) {
            if forbidden.iter().any(|pattern| matches(pattern, path)) {
                found.push(format!("{}: {path}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "{why}:\n  {}", found.join("\n  "));
}

/// Whether `file` is the module `name`, as a file or a directory.
fn within(file: &Path, name: &str) -> bool {
    file.starts_with(name) || file == Path::new(name).with_extension("rs")
}

#[test]
fn overlay_is_pure() {
    let why = "overlay takes time, random numbers and bytes as arguments and returns values";
    forbid(|file| within(file, "overlay"), IMPURE, why);
}

#[test]
fn overlay_knows_no_other_layer() {
    let others =
        ["crate::store", "crate::dataplane", "crate::handoff", "crate::http", "crate::masquerade", "crate::eventloop"];
    forbid(|file| within(file, "overlay"), &others, "overlay is below all other layers");
}

#[test]
fn only_the_etcd_store_knows_etcd() {
    let allowed = |file: &Path| file.to_string_lossy().starts_with("store/etcd");
    forbid(|file| !allowed(file), &["etcd_client"], "etcd_client stays behind the trait in store");
}

#[test]
fn only_the_dataplane_knows_netlink() {
    // nf_tables has sockets and a subsystem of its own, which the device's dataplane has no part in.
    let allowed = |file: &Path| within(file, "dataplane") || within(file, "masquerade");
    forbid(|file| !allowed(file), NETLINK, "netlink stays in dataplane and, for nf_tables, in masquerade");
}

#[test]
fn the_middle_layers_do_not_know_each_other() {
    for layer in MIDDLE {
        let others: Vec<String> = MIDDLE.iter().filter(|m| *m != layer).map(|m| format!("crate::{m}")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        forbid(|file| within(file, layer), &others, "what two middle layers share belongs in overlay");
    }
}

#[test]
fn only_the_start_knows_the_event_loop() {
    let start = ["eventloop", "start", "bin", "lib"];
    let bound = |file: &Path| !start.iter().any(|name| within(file, name));
    forbid(bound, &["crate::eventloop"], "the event loop uses the layers, not they it");
}

/// Whether a path is the pattern or below it. `*` stands for any beginning (`*::Instant::now`) or any rest of a name
/// (`netlink_*`).
fn matches(pattern: &str, path: &str) -> bool {
    if let Some(end) = pattern.strip_prefix("*::") {
        return path == end || path.ends_with(&format!("::{end}"));
    }
    match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path == pattern || path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with("::")),
    }
}

/// All paths of two names and more that a source names, and the first names of its `use` declarations.
fn paths(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        // `use<'a>` is a bound of a type, and names no path.
        if tokens[at] == "use" && tokens.get(at + 1).is_some_and(|next| next != "<") {
            at = use_tree(&tokens, at + 1, "", &mut found);
            continue;
        }
        let start = at;
        let mut path = String::new();
        while at < tokens.len() && (is_name(&tokens[at]) || tokens[at] == "::") {
            // A keyword ends the path before it: two names never follow each other within one.
            if is_name(&tokens[at]) && at > start && is_name(&tokens[at - 1]) {
                break;
            }
            path += &tokens[at];
            at += 1;
        }
        if path.contains("::") {
            found.push(path.trim_matches(':').to_string());
        }
        at = at.max(start + 1);
    }
    found
}

/// Expands one `use` tree from `tokens[at]`; returns where it ends.
fn use_tree(tokens: &[String], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut path = prefix.to_string();
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|t| t != "}") {
                    at = use_tree(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|t| t == ","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => at += 1,
            token => path += token,
        }
        at += 1;
    }
    found.push(path.trim_start_matches("::").trim_end_matches("::self").to_string());
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Names, `::` and single signs; without comments, strings and characters.
fn tokens(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = literal(rest) {
            length
        } else if c.is_alphanumeric() || c == '_' {
            let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            found.push(rest[..length].to_string());
            length
        } else {
            let length = if rest.starts_with("::") { 2 } else { c.len_utf8() };
            if !c.is_whitespace() {
                found.push(rest[..length].to_string());
            }
            length
        };
        rest = &rest[length..];
    }
    found
}

/// The length of the string or character literal that `rest` begins with. A lifetime is none.
fn literal(rest: &str) -> Option<usize> {
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'));
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = rest.len() - raw.len() + hashes + 1;
            return Some(rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len()));
        }
    }
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    if quote == '\'' && !rest[1..].starts_with('\\') && rest[1..].chars().nth(1) != Some('\'') {
        return None;
    }
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

#[test]
fn use_trees_are_expanded() {
    let source = "use std::{collections::BTreeMap, fs::{self, File}, net::*};\nuse tokio;\npub use crate::store as s;";
    let expected = ["std::collections::BTreeMap", "std::fs", "std::fs::File", "std::net::*", "tokio", "crate::store"];
    assert_eq!(paths(source), expected);
}

#[test]
fn paths_in_code_count_and_those_in_text_do_not() {
    let source = "// std::fs\n/* tokio::spawn */ fn f<'a>(x: &'a str) { let c = ':'; \n\
                  let t = std::time::Instant::now(); g(\"std::env::var \\\" \", r#\"tokio::x \" \"#); }";
    assert_eq!(paths(source), ["std::time::Instant::now"]);
}

#[test]
fn a_pattern_is_a_path_and_all_below_it() {
    assert!(matches("std::fs", "std::fs") && matches("std::fs", "std::fs::read"));
    assert!(!matches("std::fs", "std::fsync") && !matches("tokio", "crate::tokio"));
    assert!(matches("netlink_*", "netlink_packet_route::link"));
    assert!(matches("*::Instant::now", "std::time::Instant::now") && matches("*::Instant::now", "Instant::now"));
}
