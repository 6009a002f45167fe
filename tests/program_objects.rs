//! A crate that is not part of the program, but of an object that the program loads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/fixtures.rs"]
mod fixtures;

/// A fresh start of the program would be no worker, but the program: so nothing may be started.
#[test]
fn in_a_plugin_a_pool_is_refused_by_the_plugins_name_and_nothing_is_started() {
    let plugin = fixtures::build("plugin", "dev").join("libfixture_plugin.so");
    let host = fixtures::build("host", "dev").join("fixture-host");
    let printed = fixtures::run(&host, &[plugin.to_str().unwrap()]).printed();
    let lines: Vec<&str> = printed.lines().collect();
    let [main, refused, started] = lines[..] else { panic!("{printed}") };
    assert_eq!((main, started), ("main", "threads: 1, children: \"\""));
    assert!(refused.starts_with("NotInProgram: ") && refused.contains(plugin.to_str().unwrap()), "{refused}");
}
