//! What no compiler checks: the direction of dependencies, that async methods say what their
//! cancellation does, the changelog, the list of scenarios, and that of traps.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files_below(&root().join(dir), &mut found);
    found.sort();
    found
}

#[test]
fn dependencies_point_one_way() {
    const LAYERS: [&str; 11] = [
        "error", "wire", "task", "process", "reactor", "manager", "sync", "worker", "template",
        "single", "pool",
    ];
    let mut wrong = Vec::new();
    for path in sources("src") {
        let place = path.strip_prefix(root().join("src")).unwrap();
        let Some(own) = LAYERS.iter().position(|layer| place.starts_with(layer)) else { continue };
        for line in fs::read_to_string(&path)
            .unwrap()
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for (layer, name) in LAYERS.iter().enumerate().skip(own + 1) {
                if line.contains(&format!("crate::{name}::"))
                    || line.contains(&format!("crate::{{{name}"))
                {
                    wrong.push(format!(
                        "{}: {} (layer {layer} above {own})",
                        place.display(),
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_only_where_the_architecture_says() {
    let allowed = [
        "process/clone.rs",
        "process/fork.rs",
        "process/memory.rs",
        "process/sys.rs",
        "task/table.rs",
        "worker/detach.rs",
        "worker/raw.rs",
        "worker/start.rs",
        "worker/template.rs",
        // Tests of the above: they fork.
        "process/testing.rs",
        "process/child.rs",
        "process/spawn.rs",
        "reactor/supervisor.rs",
        "process/death_note.rs",
        // Traces processes, in tests.
        "pool/unkillable_workers.rs",
        // Counts what tests allocate.
        "wire/counting.rs",
    ];
    for path in sources("src") {
        let place = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        if text.contains("unsafe_code") {
            assert!(allowed.contains(&place.as_str()), "{place} allows itself unsafe code");
        }
    }
}

#[test]
fn every_async_method_says_what_becomes_of_it_when_it_is_dropped() {
    let mut silent = Vec::new();
    for path in sources("src") {
        let text = fs::read_to_string(&path).unwrap();
        let mut says = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("pub async fn") && !says {
                silent.push(format!("{}: {line}", path.display()));
            }
            says = line == "/// # Cancel safety"
                || (says && (line.starts_with("///") || line.starts_with("#[")));
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

/// A public async function, future, stream or sink that is new must be added to the test of
/// `tests/sync/primitives.rs`.
#[test]
fn every_public_async_call_is_in_the_test_of_the_cooperative_budget() {
    const TRAITS: [&str; 5] =
        [" Future for ", " Stream for ", " Sink<T> for ", " AsyncRead for ", " AsyncWrite for "];
    let tested = fs::read_to_string(root().join("tests/sync/primitives.rs")).unwrap();
    let (mut missing, mut found) = (Vec::new(), 0);
    let src = root().join("src");
    for path in sources("src").into_iter().filter(|path| !path.ends_with("elsewhere.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let name = |text: &str| text.chars().take_while(|c| is_name(*c)).collect::<String>();
        for line in text.lines().map(str::trim) {
            let call = if let Some(rest) = line.strip_prefix("pub async fn ") {
                name(rest)
            } else if line.starts_with("pub fn ") && line.contains("-> impl Future") {
                name(&line["pub fn ".len()..])
            } else if line.starts_with("impl")
                && let Some(the_trait) = TRAITS.iter().find(|the_trait| line.contains(**the_trait))
            {
                let of = name(line.split_once(the_trait).unwrap().1);
                if !text.contains(&format!("pub struct {of}")) {
                    continue;
                }
                format!("{} for {of}", the_trait.trim().split([' ', '<']).next().unwrap())
            } else {
                continue;
            };
            found += 1;
            let call = format!("{}: {call}", path.strip_prefix(&src).unwrap().display());
            if !tested
                .match_indices(&call)
                .any(|(at, _)| !tested[at + call.len()..].starts_with(|c: char| is_name(c)))
            {
                missing.push(call);
            }
        }
    }
    assert!(found > 90, "only {found} were found");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_blocking_method_that_panics_names_its_callers_line() {
    let (mut silent, mut found) = (Vec::new(), 0);
    for path in sources("src") {
        let text = fs::read_to_string(&path).unwrap();
        let (mut panics, mut names) = (false, false);
        for line in text.lines().map(str::trim) {
            if line.starts_with("pub fn blocking_") && panics {
                found += 1;
                if !names {
                    silent.push(format!("{}: {line}", path.display()));
                }
            }
            let goes_on = line.starts_with("///") || line.starts_with("#[");
            panics = line == "/// # Panics" || (panics && goes_on);
            names = line == "#[track_caller]" || (names && goes_on);
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
    assert!(found > 30, "{found} methods");
}

/// Rules are pure: events go in, actions come out, `now` is an argument.
#[test]
fn rules_do_no_io_and_read_no_clock() {
    let is_rule = |place: &str| {
        place.starts_with("rules/")
            || place.starts_with("pool/core")
            || place.starts_with("manager/objects/")
            || place.starts_with("manager/lock/")
    };
    let is_test = |place: &str| {
        ["_sim", "_sim_staff", "_tests", "_search", "/search", "/sim", "/testing", "/tests"]
            .iter()
            .any(|end| place.trim_end_matches(".rs").ends_with(end))
            || place.contains("/tests/")
    };
    let (mut impure, mut rules) = (Vec::new(), 0);
    for path in sources("src") {
        let place = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        if !is_rule(&place) || is_test(&place) {
            continue;
        }
        rules += 1;
        let text = fs::read_to_string(&path).unwrap();
        let production = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for line in production.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let line = line.replace("std::process::ExitStatus", "");
            if ["tokio::", "nix::", "Instant::now", "std::process"].iter().any(|w| line.contains(w))
            {
                impure.push(format!("{place}: {}", line.trim()));
            }
        }
    }
    assert!(rules > 20, "{rules} files of rules");
    assert!(impure.is_empty(), "{impure:#?}");
}

/// What is longer was so before there was a limit, and may only become shorter.
#[test]
fn files_are_not_long() {
    const LINES: usize = 800;
    const LONGER: &[(&str, usize)] = &[
        ("src/manager/lane.rs", 900),
        ("src/manager/lock/search.rs", 1300),
        ("src/manager/objects/queue_sim.rs", 1200),
        ("src/manager/server.rs", 1500),
        ("src/manager/state.rs", 1200),
        ("src/pool/core.rs", 1800),
        ("src/pool/core_search.rs", 2500),
        ("src/pool/core_sim.rs", 2400),
        ("src/pool/core_sim_staff.rs", 1300),
        ("src/pool/core_staff.rs", 1000),
        ("src/pool/core_tests.rs", 1700),
        ("src/pool/driver.rs", 1600),
        ("src/pool/engine.rs", 1300),
        ("src/pool/hostile_workers.rs", 900),
        ("src/pool/strange_workers.rs", 1000),
        ("src/process/child.rs", 1000),
        ("src/process/sys.rs", 1000),
        ("src/single/machine.rs", 1000),
        ("src/sync/map.rs", 900),
        ("src/sync/mutex.rs", 900),
        ("src/sync/mutex_tests.rs", 1100),
        ("src/sync/object_tests.rs", 900),
        ("src/sync/queue.rs", 900),
        ("src/template/nursery.rs", 900),
        ("src/wire/fuzz.rs", 900),
        ("src/wire/message.rs", 900),
        ("src/wire/value/de.rs", 1200),
        ("src/wire/value/tests.rs", 1300),
        ("src/worker/serve.rs", 1100),
        ("tests/faults/soak.rs", 1000),
        ("tests/faults/table.rs", 1000),
        ("tests/pool/outcomes.rs", 1000),
        ("tests/sync/collections.rs", 900),
        ("tests/sync/manager.rs", 1000),
        ("tests/sync/primitives.rs", 900),
        ("tests/sync/torture.rs", 900),
        ("tests/worker/template.rs", 900),
    ];
    let mut wrong = Vec::new();
    for path in sources("src").into_iter().chain(sources("tests")) {
        let place = path.strip_prefix(root()).unwrap().display().to_string();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let most = LONGER.iter().find(|(file, _)| *file == place).map_or(LINES, |(_, most)| *most);
        if lines > most {
            wrong.push(format!("{place} has {lines} lines, more than {most}: divide it"));
        } else if lines <= LINES && most > LINES {
            wrong.push(format!("{place} has {lines} lines: take it off the list"));
        }
    }
    for (file, _) in LONGER.iter().filter(|(file, _)| !root().join(file).exists()) {
        wrong.push(format!("{file} does not exist any more: take it off the list"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_changelog_knows_this_version() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains(&format!("## {}", env!("CARGO_PKG_VERSION"))));
}

/// The names of all tests: `file::name` below `tests/`, `path::of::module::name` in `src/`.
fn tests_by_name() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in sources("tests").into_iter().chain(sources("src")) {
        let place = path.strip_prefix(root()).unwrap().with_extension("");
        let module = place.display().to_string().replace('/', "::");
        let module =
            module.strip_prefix("tests::").or_else(|| module.strip_prefix("src::")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) =
                line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn "))
            {
                if is_test {
                    names.insert(format!("{module}::{}", rest.split(['(', '<']).next().unwrap()));
                }
                is_test = false;
            }
        }
    }
    names
}

/// Reads a list of three columns, `number`, `done` or `waits`, and the tests or the reason, and checks
/// that it has exactly the numbers that it must have, each shown by tests that exist.
fn check_list(file: &str, numbers: impl Iterator<Item = String>) {
    let tests = tests_by_name();
    let list = fs::read_to_string(root().join(file)).unwrap();
    let mut seen = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let [number, state, what] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{file}: three columns, not: {line}")
        };
        assert!(seen.insert(number.to_owned()), "{file}: {number} stands twice");
        match state {
            "done" => {
                for test in what.split(", ") {
                    assert!(
                        tests.contains(test),
                        "{file}: {number} is shown by {test}, which does not exist"
                    );
                }
            }
            "same" => assert!(what.len() > 10, "{number} does not say why it is the same"),
            "waits" => assert!(what.len() > 10, "{number} does not say what it waits for"),
            other => panic!("{file}: {number} is {other}, neither done nor waits"),
        }
    }
    assert_eq!(seen, numbers.collect(), "{file}");
}

#[test]
fn every_scenario_is_listed_and_shown_by_tests_that_exist() {
    check_list("tests/scenarios.tsv", (1..=122).map(|number| format!("G-{number:03}")));
}

#[test]
fn scenarios_over_a_template_are_listed_and_shown_by_tests_that_exist() {
    let groups = [1..=8, 50..=54, 62..=66, 67..=71, 102..=106];
    let numbers = groups.into_iter().flatten().map(|number: u32| format!("G-{number:03}"));
    check_list("tests/start_methods.tsv", numbers);
}

#[test]
fn every_case_is_listed_and_shown_by_tests_that_exist() {
    let findings = [('H', 5), ('M', 6), ('L', 4)];
    let findings =
        findings.iter().flat_map(|(kind, last)| (1..=*last).map(move |n| format!("{kind}{n}")));
    check_list("tests/cases.tsv", (1..=32).map(|number: u32| number.to_string()).chain(findings));
}

/// Each says which tests show it, or that none does; and those it names exist.
#[test]
fn every_trap_is_shown_by_tests_that_exist_or_says_that_it_is_not() {
    let tests = tests_by_name();
    let document = fs::read_to_string(root().join("docs/gotchas.md")).unwrap();
    let traps: Vec<_> = document.split("\n### ").skip(1).collect();
    assert!(traps.len() > 30, "{} traps", traps.len());
    for trap in traps {
        let name = trap.lines().next().unwrap();
        let shown: Vec<_> = trap
            .split("Shown by: ")
            .skip(1)
            .flat_map(|by| by.split("\n\n").next().unwrap().split('`'))
            .collect();
        let named: Vec<_> =
            shown.into_iter().filter(|word| word.contains("::") && !word.contains(' ')).collect();
        for test in &named {
            assert!(tests.contains(*test), "{name:?} is shown by {test}, which does not exist");
        }
        assert!(
            !named.is_empty() || trap.contains("Not shown"),
            "{name:?} says neither what shows it, nor that nothing does"
        );
    }
}

/// The front page is short, and its links lead to chapters of the guide and files that exist.
#[test]
fn the_readme_is_short_and_its_links_lead_somewhere() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let guide = fs::read_to_string(root().join("src/guide.rs")).unwrap();
    assert!(readme.len() <= 8 << 10, "{} bytes", readme.len());
    assert!(readme.lines().count() <= 150, "{} lines", readme.lines().count());
    let chapters: BTreeSet<_> = readme
        .lines()
        .filter_map(|line| line.split_once("/procpool/guide/"))
        .map(|(_, chapter)| chapter.trim_end_matches('/'))
        .filter(|chapter| !chapter.is_empty())
        .collect();
    assert!(chapters.len() > 8, "{chapters:?}");
    for chapter in chapters {
        assert!(guide.contains(&format!("pub mod {chapter} ")), "{chapter} is no chapter");
    }
    for file in readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
        assert!(
            file.0.starts_with("https://") || root().join(file.0).exists(),
            "{} does not exist",
            file.0
        );
    }
    for (name, _) in readme.lines().filter_map(|line| line.split_once("]: https")) {
        assert!(readme.matches(&format!("{name}]")).count() > 1, "nothing leads to {name}");
    }
}
