//! What the tests of handles share: other processes, played by connections in this one or real.

use super::connection::Connection;
use super::handle::Handle;
use crate::manager::message::{Kind, Name, Place};
use crate::manager::object::Part;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Tells a process that [`start_client`] has started what it is a client of.
const CLIENT: &str = "PROCPOOL_TEST_CLIENT";

/// A process that is none: a connection by a socket.
pub(super) struct Elsewhere {
    pub(super) connection: Arc<Connection>,
    client: crate::manager::object::Client,
    home: Arc<Connection>,
}

impl Elsewhere {
    pub(super) fn new(home: &Arc<Connection>) -> Self {
        let server = home.server().expect("local");
        let (client, socket) = server.connect(None).expect("connect");
        server.dismiss(client);
        let connection = Connection::remote(home.manager(), socket);
        Self { connection, client, home: Arc::clone(home) }
    }

    /// The same object, as it is seen there.
    pub(super) fn handle(&self, handle: &Handle) -> Handle {
        let Name { object, part, .. } = *handle.name();
        let name =
            self.home.server().expect("local").lend(self.client, object, part).expect("lend");
        Handle::of(&self.connection, name)
    }
}

/// Starts an ignored test of this program as a process that is a client, with references to these
/// objects.
pub(super) fn start_client(home: &Arc<Connection>, test: &str, handles: &[&Handle]) -> Child {
    let server = home.server().expect("local");
    let (client, socket) = server.connect(None).expect("connect");
    server.dismiss(client);
    let mut told = home.manager().to_string();
    for handle in handles {
        let Name { object, part, .. } = *handle.name();
        let Name { kind, place, .. } = server.lend(client, object, part).expect("lend");
        let place = place.unwrap_or(Place { segment: 0, offset: 0, len: 0 });
        told += &format!(
            " {object},{},{},{},{},{}",
            part.0, kind.0, place.segment, place.offset, place.len
        );
    }
    Command::new(std::env::current_exe().expect("the test program"))
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(CLIENT, told)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the test program")
}

/// In such a process: the references that it was given.
pub(super) fn client() -> Option<Vec<Handle>> {
    let told = std::env::var(CLIENT).ok()?;
    let mut told = told.split(' ');
    let manager = told.next()?.parse().ok()?;
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    let connection = Connection::remote(manager, socket);
    let handles = told.map(|one| {
        let numbers: Vec<u64> =
            one.split(',').map(|number| number.parse().expect("a number")).collect();
        let place =
            Place { segment: numbers[3] as u32, offset: numbers[4] as u32, len: numbers[5] as u32 };
        let place = (place.len > 0).then_some(place);
        let name = Name {
            object: numbers[0],
            part: Part(numbers[1] as u8),
            kind: Kind(numbers[2] as u8),
            place,
        };
        Handle::of(&connection, name)
    });
    let handles = handles.collect();
    // It is a copy of standard input, which stays open: it must not hold the socket after the
    // connection has gone.
    let null = std::fs::File::open("/dev/null").expect("open");
    nix::unistd::dup2_stdin(null).expect("dup2");
    Some(handles)
}
