//! No module uses one that uses it: of any two one is below the other, and can be read and tested without it.
//!
//! A folder counts as one module where its neighbours are looked at, and its files are looked at among themselves. A parent
//! and its children are one thing in this, since a child's file is part of its parent's; in `overlay/plane` the children that
//! the parent is made of must not know it either. Tests are not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::{collect, paths};

/// A module's path from the root of its crate.
type Module = Vec<String>;

/// The modules of a crate, with the paths that each names.
struct Crate(BTreeMap<Module, Vec<String>>);

impl Crate {
    /// The crate whose sources are in this folder of the repository.
    fn read(src: &str) -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(src);
        let mut files = Vec::new();
        collect(&src, &mut files);
        let sources: BTreeMap<Module, String> = files
            .iter()
            .filter(|file| !file.starts_with(src.join("bin")))
            .map(|file| {
                let module = file.strip_prefix(&src).unwrap_or(file).with_extension("");
                let names = module.iter().map(|name| name.to_string_lossy().into_owned());
                let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("read {}: {e}", file.display()));
                (names.filter(|name| name != "mod" && name != "lib").collect(), text)
            })
            .collect();
        let tests: BTreeSet<Module> = sources.iter().flat_map(|(module, text)| test_modules(module, text)).collect();
        let is_test = |module: &Module| tests.iter().any(|test| module.starts_with(test));
        let shipped = sources.into_iter().filter(|(module, _)| !is_test(module));
        Self(shipped.map(|(module, text)| (module, paths(before_tests(&text)))).collect())
    }

    /// The module that a path leads to, seen from a module: where its last name is defined, if that is in this crate.
    fn resolve(&self, from: &Module, path: &str, depth: u32) -> Option<Module> {
        let mut names = path.split("::").peekable();
        let mut at = if names.next_if_eq(&"crate").is_some() { Module::new() } else { from.clone() };
        let mut is_relative = names.next_if_eq(&"self").is_some() || at.is_empty();
        while names.next_if_eq(&"super").is_some() {
            at.pop()?;
            is_relative = true;
        }
        for name in names {
            let child: Module = at.iter().cloned().chain([name.to_string()]).collect();
            if self.0.contains_key(&child) {
                (at, is_relative) = (child, true);
            } else if !is_relative {
                return None;
            } else {
                // What the module itself has from elsewhere is defined there.
                let end = format!("::{name}");
                let others = self.0.get(&at)?.iter().filter(|other| other.ends_with(&end) && depth > 0);
                let defined = others.filter_map(|other| self.resolve(&at, other, depth - 1)).find(|other| *other != at);
                return Some(defined.unwrap_or(at));
            }
        }
        Some(at)
    }

    /// Each module with one that it uses.
    fn uses(&self) -> impl Iterator<Item = (&Module, Module)> {
        self.0.iter().flat_map(move |(module, paths)| {
            let used = paths.iter().filter_map(move |path| self.resolve(module, path, 3));
            used.filter(move |used| used != module).map(move |used| (module, used))
        })
    }

    /// For each folder: which of its modules use which.
    fn neighbours(&self) -> Folders {
        let mut folders = Folders::new();
        for (user, used) in self.uses() {
            let common = user.iter().zip(&used).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (user.get(common), used.get(common)) {
                let folder = folders.entry(user[..common].to_vec()).or_default();
                folder.entry(from.clone()).or_default().insert(to.clone());
            }
        }
        folders
    }
}

/// For each folder: which of its modules use which.
type Folders = BTreeMap<Module, BTreeMap<String, BTreeSet<String>>>;

/// A circle in each folder that has one.
fn circles(folders: &Folders) -> Vec<String> {
    let circles = folders.iter().filter_map(|(folder, uses)| {
        let circle = uses.keys().find_map(|start| circle(uses, start))?;
        Some(format!("{}: {}", folder.join("/"), circle.join(" -> ")))
    });
    circles.collect()
}

/// A way along these uses from a module back to it.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>, start: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    // The way to each module that is still to be looked at.
    let mut open = vec![vec![start.to_string()]];
    while let Some(way) = open.pop() {
        for next in uses.get(way.last()?).into_iter().flatten() {
            let on: Vec<String> = way.iter().chain([next]).cloned().collect();
            if next == start {
                return Some(on);
            }
            if seen.insert(next.clone()) {
                open.push(on);
            }
        }
    }
    None
}

/// The files that a module declares for tests only.
fn test_modules(module: &Module, text: &str) -> Vec<Module> {
    let declared = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let name = rest.strip_prefix("mod ")?.split_once(';')?.0;
        Some(module.iter().cloned().chain([name.to_string()]).collect())
    });
    declared.collect()
}

/// A source without the tests at its end.
fn before_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(shipped, _)| shipped)
}

#[test]
fn the_agent_has_no_circle_of_modules() {
    assert_eq!(circles(&Crate::read("agent/src").neighbours()), [""; 0]);
}

#[test]
fn netlink_ext_has_no_circle_of_modules() {
    assert_eq!(circles(&Crate::read("netlink-ext/src").neighbours()), [""; 0]);
}

#[test]
fn what_a_plane_is_made_of_does_not_know_it() {
    let agent = Crate::read("agent/src");
    let plane: Module = ["overlay", "plane"].map(String::from).into();
    let uses: Vec<(&Module, Module)> = agent.uses().collect();
    let mut parts: BTreeSet<&Module> = BTreeSet::new();
    // What the parts are made of are parts as well.
    for _ in 0..8 {
        let below = uses.iter().filter(|(user, _)| **user == plane || parts.contains(user)).map(|(_, used)| used);
        parts = below.filter(|used| used.starts_with(&plane) && **used != plane).collect();
    }
    assert!(parts.len() > 4, "{parts:?}");
    let above: Vec<_> = uses.iter().filter(|(user, used)| parts.contains(user) && *used == plane).collect();
    assert!(above.is_empty(), "{above:?}");
}

#[test]
fn a_circle_is_found_through_a_name_that_is_passed_on() {
    let made = |files: &[(&str, &str)]| {
        let module = |name: &str| name.split('/').filter(|name| !name.is_empty()).map(String::from).collect();
        Crate(files.iter().map(|(name, text)| (module(name), paths(text))).collect())
    };
    let root = ("", "pub use dump::Dumper;");
    let below = [root, ("dump", "use crate::table::Row;"), ("table", "use std::fmt;")];
    assert_eq!(circles(&made(&below).neighbours()), [""; 0]);
    let round = [root, ("dump", "use crate::table::Row;"), ("table", "use crate::{Dumper, std};")];
    assert_eq!(circles(&made(&round).neighbours()), [": dump -> table -> dump"]);
    let deep =
        [("a", ""), ("a/b", "use super::super::c;"), ("c", "use crate::d;"), ("d", "fn f() { crate::a::b::g() }")];
    assert_eq!(circles(&made(&deep).neighbours()), [": a -> c -> d -> a"]);
}
