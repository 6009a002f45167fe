//! Where there are no workers, a pool says so. (Elsewhere the platform is the ordinary one, and
//! this shows that it is told apart.)

use procpool::{ErrorKind, Pool, Process};

#[test]
fn a_pool_is_unsupported_exactly_where_workers_do_not_exist() {
    let supported = cfg!(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    ));
    match Pool::new() {
        Ok(_) => assert!(supported),
        Err(error) => assert_eq!((supported, error.kind()), (false, ErrorKind::Unsupported)),
    }
}

#[test]
fn a_process_is_unsupported_exactly_where_workers_do_not_exist() {
    let supported = cfg!(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    ));
    match Process::spawn(|| 7u8, ()) {
        Ok(process) => assert_eq!((supported, process.blocking_join().ok()), (true, Some(7))),
        Err(error) => assert_eq!((supported, error.kind()), (false, ErrorKind::Unsupported)),
    }
    match Process::builder().detach(|| (), ()).blocking_wait() {
        Ok(_) => assert!(supported),
        Err(error) => assert_eq!((supported, error.kind()), (false, ErrorKind::Unsupported)),
    }
    assert!(procpool::parent().is_none());
}
