//! The plumbing of handles, in the application and through a socket, with a small object of its
//! own.

use super::connection::Connection;
use super::handle::{Handle, kinds};
use super::testing::Elsewhere;
use super::wait::block_on;
use crate::error::sync::{Error, ErrorKind};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Object, Part};
use crate::process::testing::wait_until;
use crate::wire::packet::Packet;
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One place: `put` fills it (and throws away what was in it), `take` waits until it is full,
/// `peek` does not.
#[derive(Default)]
struct Place {
    content: Option<Body>,
    waiting: VecDeque<Caller>,
    offered: Option<(Caller, Body)>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Place {
    fn give(&mut self, answers: &mut Vec<Answer>) {
        if let Some(caller) = self.waiting.front().copied()
            && let Some(body) = self.content.take()
        {
            self.waiting.pop_front();
            self.offered = Some((caller, body.clone()));
            answers.push(Answer::offer(caller, body));
        }
    }

    fn note(&self, what: impl Into<String>) {
        self.log.lock().expect("log").push(what.into());
    }
}

impl Object for Place {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        _: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        match &body.head[..] {
            b"put" => {
                self.content = Some(body);
                answers.push(Answer::new(caller, Body::default()));
                self.give(answers);
            }
            b"take" => {
                self.waiting.push_back(caller);
                self.give(answers);
            }
            b"panic" => panic!("a bug, as a test"),
            b"peek" => answers.push(Answer::new(caller, self.content.clone().unwrap_or_default())),
            other => return Err(Bad(format!("{other:?}"))),
        }
        Ok(())
    }

    fn taken(&mut self, caller: Caller, _: Instant, _: &mut Vec<Answer>) {
        if self.offered.take_if(|(to, _)| *to == caller).is_some() {
            self.note("taken");
        }
    }

    fn cancel(&mut self, caller: Caller, _: Instant, answers: &mut Vec<Answer>) {
        self.waiting.retain(|waiting| *waiting != caller);
        if let Some((_, body)) = self.offered.take_if(|(to, _)| *to == caller) {
            self.content = Some(body);
            self.note("back");
            self.give(answers);
        }
    }

    fn gone(&mut self, client: Client, how: Gone, now: Instant, answers: &mut Vec<Answer>) {
        self.note(format!("{how:?}"));
        self.waiting.retain(|waiting| waiting.client != client);
        if let Some((caller, _)) = &self.offered
            && caller.client == client
        {
            self.cancel(*caller, now, answers);
        }
    }

    fn held(&mut self, part: Part, held: bool, _: Instant, _: &mut Vec<Answer>) {
        if part != Part::WHOLE {
            self.note(format!("{} {held}", part.0));
        }
    }

    fn close(&mut self, _: Instant, answers: &mut Vec<Answer>) {
        answers.extend(
            self.waiting
                .drain(..)
                .map(|caller| Answer::new(caller, Body::new(Packet::copy_from(b"closed")))),
        );
    }

    fn bytes(&self) -> usize {
        self.content.as_ref().map_or(0, |body| body.tail.len())
    }
}

#[derive(Clone, Debug)]
struct PlaceHandle {
    handle: Handle,
    marker: std::marker::PhantomData<()>,
}

super::handle::handle_travels!(PlaceHandle, kinds::EVENT);

impl PlaceHandle {
    fn new(connection: &Arc<Connection>) -> (Self, Arc<Mutex<Vec<String>>>) {
        let place = Place::default();
        let log = Arc::clone(&place.log);
        let handle =
            Handle::create(connection, kinds::EVENT, Part::WHOLE, None, || Box::new(place))
                .expect("create");
        (Self { handle, marker: std::marker::PhantomData }, log)
    }

    fn put<T: Serialize>(&self, value: &T) -> Result<(), Error> {
        let (tail, held) = self.handle.encode(value)?;
        self.handle.ask(Body::with_value(Packet::copy_from(b"put"), tail, held)).settle().map(drop)
    }

    async fn take<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Error> {
        let body = self.handle.ask(Body::new(Packet::copy_from(b"take"))).await?;
        self.handle.decode(&body)
    }

    fn peek<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Error> {
        let body = self.handle.ask(Body::new(Packet::copy_from(b"peek"))).settle()?;
        self.handle.decode(&body)
    }
}

/// The same object as another process would see it: through a socket.
fn elsewhere(connection: &Arc<Connection>, place: &PlaceHandle) -> (Arc<Connection>, PlaceHandle) {
    let elsewhere = Elsewhere::new(connection);
    let handle = elsewhere.handle(&place.handle);
    (elsewhere.connection, PlaceHandle { handle, marker: std::marker::PhantomData })
}

fn objects(connection: &Arc<Connection>) -> usize {
    connection.server().expect("local").objects()
}

#[test]
fn requests_are_answered_here_and_through_a_socket_and_offers_are_taken_once() {
    let connection = Connection::start().expect("start");
    let (place, log) = PlaceHandle::new(&connection);
    let (_theirs, there) = elsewhere(&connection, &place);
    for (putter, taker) in [(&place, &place), (&place, &there), (&there, &place), (&there, &there)]
    {
        let mut taking = Box::pin(taker.take::<String>());
        assert!(taking.as_mut().now_or_never().is_none());
        putter.put(&"value").expect("put");
        assert_eq!(block_on(taking).expect("take"), "value");
    }
    wait_until("all are noted", || log.lock().expect("log").len() == 4);
    assert!(log.lock().expect("log").iter().all(|note| note == "taken"));
}

#[test]
fn what_was_offered_to_one_who_gives_up_goes_back() {
    let connection = Connection::start().expect("start");
    let (place, log) = PlaceHandle::new(&connection);
    let (_theirs, there) = elsewhere(&connection, &place);
    for taker in [&place, &there] {
        place.put(&7u64).expect("put");
        let asking = taker.handle.ask(Body::new(Packet::copy_from(b"take")));
        // It has been offered, and nobody has seen it.
        wait_until("it was offered", || block_on(async { place.peek::<u64>() }).is_err());
        drop(asking);
        wait_until("it is back", || {
            log.lock().expect("log").pop().is_some_and(|note| note == "back")
        });
        assert_eq!(block_on(place.take::<u64>()).expect("take"), 7);
    }
}

#[test]
fn a_client_that_ends_is_told_of_and_what_it_was_offered_goes_back() {
    let connection = Connection::start().expect("start");
    let (place, log) = PlaceHandle::new(&connection);
    let (theirs, there) = elsewhere(&connection, &place);
    place.put(&7u64).expect("put");
    let asking = there.handle.ask(Body::new(Packet::copy_from(b"take")));
    wait_until("it was offered", || place.peek::<u64>().is_err());
    // As if its process had been killed: the socket ends, and nothing more is said.
    theirs.cut();
    wait_until("its end is known", || log.lock().expect("log").contains(&"Died".to_owned()));
    assert_eq!(block_on(place.take::<u64>()).expect("take"), 7);
    assert!(block_on(asking).expect_err("no answer").is_manager_closed());
    assert!(block_on(there.take::<u64>()).expect_err("no connection").is_manager_closed());
}

#[test]
fn handles_live_in_values_of_other_objects_and_are_counted() {
    let connection = Connection::start().expect("start");
    let (outer, _) = PlaceHandle::new(&connection);
    let (inner, log) = PlaceHandle::new(&connection);
    let (theirs, there) = elsewhere(&connection, &outer);
    inner.put(&"within").expect("put");
    outer.put(&(1, Some(inner))).expect("put");
    assert_eq!(objects(&connection), 2, "the value keeps it");
    // Another process finds it there, uses it, and puts it back twice.
    let (number, found) = block_on(there.take::<(u8, Option<PlaceHandle>)>()).expect("take");
    let found = found.expect("some");
    assert_eq!((number, found.peek::<String>().expect("peek")), (1, "within".to_owned()));
    there.put(&vec![found.clone(), found.clone()]).expect("put");
    drop(found);
    assert_eq!(block_on(outer.take::<Vec<PlaceHandle>>()).expect("take").len(), 2);
    wait_until("nobody has it any more", || objects(&connection) == 1);
    // Of what ends with a reference inside, nothing stays.
    let (last, _) = PlaceHandle::new(&connection);
    outer.put(&last).expect("put");
    drop((last, outer, there, theirs));
    wait_until("nothing is left", || objects(&connection) == 0);
    drop(log);
}

#[test]
fn a_client_gets_at_nothing_that_it_was_not_given() {
    let connection = Connection::start().expect("start");
    let (given, _) = PlaceHandle::new(&connection);
    let (secret, _) = PlaceHandle::new(&connection);
    secret.put(&1u8).expect("put");
    let (theirs, there) = elsewhere(&connection, &given);
    let forged = PlaceHandle {
        handle: Handle::of(&theirs, *secret.handle.name()),
        marker: std::marker::PhantomData,
    };
    assert_eq!(forged.peek::<u8>().expect_err("not its own").kind(), ErrorKind::NoSuchObject);
    assert_eq!(
        there.put(&forged).expect_err("nor to be passed on").kind(),
        ErrorKind::NoSuchObject
    );
    drop(forged); // releases what it never had
    assert!(block_on(secret.take::<u8>()).is_ok());
}

#[test]
fn parts_are_counted_by_themselves() {
    let connection = Connection::start().expect("start");
    let (place, log) = PlaceHandle::new(&connection);
    let (_theirs, there) = elsewhere(&connection, &place);
    let sender = there.handle.part(Part::SENDER).expect("part");
    let second = place.handle.part(Part::SENDER).expect("part");
    drop(sender);
    let notes = || log.lock().expect("log").clone();
    wait_until("the first came", || !notes().is_empty());
    there.put(&1).expect("put"); // behind the release
    assert_eq!(notes(), ["1 true"]);
    drop(second);
    assert_eq!(notes(), ["1 true", "1 false"]);
}

#[test]
fn after_the_end_everything_is_refused_and_a_new_one_can_be_started() {
    let connection = Connection::start().expect("start");
    let (place, _) = PlaceHandle::new(&connection);
    let (_theirs, there) = elsewhere(&connection, &place);
    place.put(&0u8).expect("put");
    block_on(place.take::<u8>()).expect("take");
    let waiting = [
        place.handle.ask(Body::new(Packet::copy_from(b"take"))),
        there.handle.ask(Body::new(Packet::copy_from(b"take"))),
    ];
    there.peek::<u8>().expect_err("empty"); // its request stands behind the other
    connection.close();
    for asking in waiting {
        match block_on(asking) {
            Ok(body) => assert_eq!(&body.head[..], b"closed"),
            Err(error) => assert!(error.is_manager_closed()),
        }
    }
    assert!(place.put(&1u8).expect_err("closed").is_manager_closed());
    wait_until("it is known there", || {
        there.put(&1u8).is_err_and(|error| error.is_manager_closed())
    });
    let (again, _) = PlaceHandle::new(&Connection::start().expect("start"));
    again.put(&1u8).expect("put");
}

#[test]
fn large_values_and_many_requests_go_through_a_socket() {
    let connection = Connection::start().expect("start");
    let (place, _) = PlaceHandle::new(&connection);
    let (_theirs, there) = elsewhere(&connection, &place);
    let large = vec![7u8; (16 << 20) - 16];
    there.put(&large).expect("put");
    assert_eq!(block_on(there.take::<Vec<u8>>()).expect("take"), large);
    let error = there.put(&vec![7u8; 17 << 20]).expect_err("too large");
    assert_eq!((error.kind(), error.size_limit()), (ErrorKind::TooLarge, Some(16 << 20)));
    // More than the sockets hold, with nobody waiting meanwhile.
    let body = || Body::with_value(Packet::copy_from(b"put"), Packet::copy_from(&[0xc0; 1]), None);
    let asked: Vec<_> = (0..20_000).map(|_| there.handle.ask(body())).collect();
    asked.into_iter().for_each(|asking| drop(block_on(asking).expect("put")));
}

#[test]
fn a_message_that_breaks_the_protocol_ends_that_client_alone() {
    let connection = Connection::start().expect("start");
    let (place, log) = PlaceHandle::new(&connection);
    let (_bad_one, bad) = elsewhere(&connection, &place);
    let (_good_one, good) = elsewhere(&connection, &place);
    bad.handle.tell(Body::new(Packet::copy_from(b"nonsense"))).expect("sent");
    wait_until("it is cut off", || bad.put(&1u8).is_err());
    assert_eq!(log.lock().expect("log")[..], ["Died"]);
    good.put(&1u8).expect("put");
    assert_eq!(place.peek::<u8>().expect("peek"), 1);
}

#[test]
fn a_panic_in_the_rules_ends_the_client_that_brought_it_up_and_the_manager_is_driven_on() {
    let connection = Connection::start().expect("start");
    let (place, _) = PlaceHandle::new(&connection);
    let (_bad, brings_it_up) = elsewhere(&connection, &place);
    let (_good, other) = elsewhere(&connection, &place);
    other.put(&1u8).expect("put");
    let ask = Body::new(Packet::copy_from(b"panic"));
    let failed = block_on(brings_it_up.handle.ask(ask)).expect_err("its connection has ended");
    assert_eq!(failed.kind(), ErrorKind::ManagerClosed);
    for n in 0..10u8 {
        other.put(&n).expect("it is served on");
        assert_eq!(place.peek::<u8>().expect("so is the application"), n);
    }
    let (_new, late) = elsewhere(&connection, &place);
    assert_eq!(late.peek::<u8>().expect("so is one that comes later"), 9);
}

/// It is brought up while another client is read, whose introducer it is: it does not read its
/// answers, so by itself it would not be read.
#[test]
fn a_panic_in_the_rules_costs_neither_those_that_it_introduced_nor_their_introducers() {
    use crate::manager::message::ToManager;
    use crate::process::sys::send_with_fds;
    use crate::wire::frame;
    use std::io::{IoSlice, Read};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    const HANG: std::time::Duration = std::time::Duration::from_secs(30);
    fn say(socket: &UnixStream, message: ToManager<'_>, fds: &[BorrowedFd<'_>]) {
        let mut bytes = Vec::new();
        let start = frame::begin(&mut bytes);
        message.write(&mut bytes);
        frame::finish(&mut bytes, start);
        let sent = send_with_fds(socket.as_fd(), &[IoSlice::new(&bytes)], fds);
        assert_eq!(sent.expect("there is room"), bytes.len());
    }
    let hears = |mut socket: &UnixStream| {
        socket.set_read_timeout(Some(HANG)).expect("a limit");
        socket.read(&mut [0; 4096]).expect("it is answered")
    };
    let introduce = |by: &UnixStream| {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        say(by, ToManager::Introduce { client: 0, process: false }, &[theirs.as_fd()]);
        assert!(hears(&ours) > 0, "its welcome");
        ours
    };
    let connection = Connection::start().expect("start");
    let server = connection.server().expect("local");
    let (place, _) = PlaceHandle::new(&connection);
    place.put(&vec![0u8; 1 << 20]).expect("put");
    let (client, socket) = server.connect(None).expect("a client");
    server.dismiss(client);
    let first = UnixStream::from(socket);
    let object = place.handle.name().object;
    server.lend(client, object, Part::WHOLE).expect("lent");
    let second = introduce(&first);
    let third = introduce(&second);
    let request = |ticket, head: &'static [u8]| {
        let tail = &[][..];
        say(&first, ToManager::Request { object, ticket, names: Vec::new(), head, tail }, &[]);
    };
    (1..=16).for_each(|ticket| request(ticket, b"peek"));
    wait_until("it is stuck", || server.describe_clients().contains("blocked true"));
    request(17, b"panic");
    let asks = |socket: &UnixStream, ticket| {
        say(socket, ToManager::Fetch { object: u64::MAX, ticket }, &[]);
        assert!(hears(socket) > 0, "it is refused");
    };
    asks(&third, 1);
    wait_until("the first has ended", || server.clients() == 2);
    asks(&second, 1);
    asks(&third, 2);
}

#[test]
fn a_client_that_holds_one_half_of_a_queue_can_use_neither_the_other_half_nor_take_it() {
    use crate::manager::objects::code::{Message, Wait};
    use crate::manager::objects::queue::{Ask, Queue};
    let connection = Connection::start().expect("start");
    let made = || Box::new(Queue::new(None)) as Box<dyn Object>;
    let whole = Handle::create(&connection, kinds::QUEUE, Part::WHOLE, None, made).expect("made");
    let send = || Ask::Send { wait: Wait::No };
    let receive = || Ask::Recv { wait: Wait::No, max: 9 };
    let lease = || Ask::Lease { wait: Wait::No, limit: None };
    let value = || whole.encode(&1u8).expect("encode").0;
    let asked = |by: &Handle, ask: Ask| {
        block_on(by.ask(Body::with_value(ask.packet(), value(), None))).map_err(|e| e.kind())
    };
    for (part, other) in [(Part::SENDER, Part::RECEIVER), (Part::RECEIVER, Part::SENDER)] {
        let process = Elsewhere::new(&connection);
        let half = process.handle(&whole.part(part).expect("a half"));
        assert_eq!(asked(&half, send()).is_ok(), part == Part::SENDER);
        assert_eq!(asked(&half, receive()).is_ok(), part == Part::RECEIVER);
        assert_eq!(asked(&half, lease()).is_ok(), part == Part::RECEIVER);
        assert!(asked(&half, Ask::Status).is_ok(), "both may ask for that");
        // What it says that it has beside that, it does not get.
        for more in [other, Part::WHOLE] {
            let forged = half.part(more).expect("its own word");
            let forbidden = if part == Part::SENDER { receive() } else { send() };
            assert_eq!(asked(&forged, forbidden).err(), Some(ErrorKind::NoSuchObject));
        }
    }
}
