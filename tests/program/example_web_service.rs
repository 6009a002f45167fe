//! The example `web_service` under load, with crashes in it: who asked for the crash gets a 500,
//! everybody else the right answer; and it ends as it should.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::examples::example;
use crate::support::{KillOnDrop, children, signal, soon, until};
use futures::future::join_all;
use nix::libc;
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::thread::available_parallelism;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How many clients there are at once, and how many requests each of them makes.
const CLIENTS: usize = 32;
const REQUESTS: usize = 25;
/// One request in so many crashes.
const CRASH: usize = 10;
const WAYS: [(&str, &str); 5] = [
    ("segfault", "WorkerDied"),
    ("panic", "Panicked"),
    ("abort", "WorkerDied"),
    ("exit", "WorkerDied"),
    ("overflow", "WorkerDied"),
];

/// The example, running.
struct Service {
    process: KillOnDrop,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
    tag: String,
    _directory: tempfile::TempDir,
}

impl Service {
    fn start() -> Self {
        // A crash may leave a core file where it happens.
        let directory = tempfile::tempdir().unwrap();
        let tag = directory.path().to_str().unwrap().to_owned();
        let mut command = Command::new(example("web_service"));
        command
            .arg("127.0.0.1:0")
            .current_dir(&directory)
            .env("PROCPOOL_TEST_SERVICE", &tag)
            .stdin(Stdio::null());
        let mut process =
            KillOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line
            .trim_end()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("{line:?}"))
            .parse()
            .unwrap();
        Self { process, stdout, address, tag, _directory: directory }
    }

    fn pid(&self) -> u32 {
        self.process.0.id()
    }

    async fn connect(&self) -> Client {
        Client(tokio::io::BufReader::new(soon(TcpStream::connect(self.address)).await.unwrap()))
    }

    /// It and its workers: all processes with its mark in their environment.
    fn processes(&self) -> Vec<u32> {
        let mark = format!("PROCPOOL_TEST_SERVICE={}\0", self.tag);
        let pids = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &u32| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.windows(mark.len()).any(|part| part == mark.as_bytes()))
        };
        pids.filter(is_ours).collect()
    }

    /// Waits for its end; gives its status and what it printed last.
    async fn ended(mut self) -> (ExitStatus, String) {
        until("the service ends", || self.process.0.try_wait().unwrap().is_some()).await;
        let status = self.process.0.wait().unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        until("its workers are gone", || self.processes().is_empty()).await;
        (status, rest)
    }
}

/// One connection, which is kept for one request after the other.
struct Client(tokio::io::BufReader<TcpStream>);

impl Client {
    async fn send(&mut self, path: &str) {
        self.0
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .await
            .unwrap();
    }

    async fn receive(&mut self) -> (u16, String) {
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).await.unwrap(), 0, "the connection was closed");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = Some(rest[..3].parse().unwrap());
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (status.unwrap(), String::from_utf8(body).unwrap())
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        soon(async {
            self.send(path).await;
            self.receive().await
        })
        .await
    }
}

fn primes(limit: usize) -> usize {
    let mut is_prime = vec![true; limit];
    for n in 2..limit {
        if is_prime[n] {
            (2 * n..limit).step_by(n).for_each(|multiple| is_prime[multiple] = false);
        }
    }
    is_prime.iter().skip(2).filter(|prime| **prime).count()
}

#[tokio::test]
async fn under_load_each_crash_costs_its_own_request_and_sigterm_lets_the_last_one_end() {
    let service = Service::start();
    let clients = (0..CLIENTS).map(|client| {
        let service = &service;
        async move {
            let mut connection = service.connect().await;
            let mut crashes = 0;
            for request in 0..REQUESTS {
                let number = client * REQUESTS + request;
                if number % CRASH == 3 {
                    let (how, kind) = WAYS[number / CRASH % WAYS.len()];
                    assert_eq!(
                        connection.get(&format!("/crash/{how}")).await,
                        (500, kind.to_owned()),
                        "{how}"
                    );
                    crashes += 1;
                } else {
                    let limit = 100 + number;
                    assert_eq!(
                        connection.get(&format!("/primes/{limit}")).await,
                        (200, primes(limit).to_string()),
                        "{limit}"
                    );
                }
            }
            crashes
        }
    });
    let crashes: usize = join_all(clients).await.into_iter().sum();
    assert_eq!(crashes, CLIENTS * REQUESTS / CRASH);

    // What it does not take for a request costs no worker.
    let mut client = service.connect().await;
    let before = children(service.pid());
    assert_eq!(client.get("/primes/10000001").await.0, 400);
    assert_eq!(client.get("/primes/many").await.0, 400);
    assert_eq!(client.get("/nowhere").await.0, 404);
    assert_eq!(client.get("/crash/nothing").await, (200, "nothing crashes nothing".into()));
    let after = children(service.pid());
    assert!(before.iter().all(|pid| after.contains(pid)), "{before:?} {after:?}");

    // SIGTERM while a request is being answered: that one still is.
    let runs = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/syscall"))
            .is_ok_and(|now| now.starts_with("running"))
    };
    until("all workers are idle", || !children(service.pid()).iter().any(runs)).await;
    let workers = children(service.pid());
    let mut slow = service.connect().await;
    slow.send("/primes/1000000").await;
    until("a worker computes", || workers.iter().any(runs)).await;
    signal(service.pid(), Signal::SIGTERM);
    assert_eq!(soon(slow.receive()).await, (200, "78498".into()));
    drop((client, slow));
    let (status, rest) = service.ended().await;
    assert!(status.success() && rest == "ended\n", "{status}: {rest}");
}

#[tokio::test]
async fn who_hangs_up_frees_the_worker_and_ctrl_c_ends_it() {
    let service = Service::start();
    let in_futex = format!("{} ", libc::SYS_futex);
    let hangs = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/syscall"))
            .is_ok_and(|now| now.starts_with(&in_futex))
    };
    let workers = available_parallelism().unwrap().get();
    let mut hanging = Vec::new();
    for _ in 0..2 * workers {
        let mut client = service.connect().await;
        client.send("/hang").await;
        hanging.push(client);
    }
    until("all workers hang", || {
        children(service.pid()).iter().filter(|pid| hangs(pid)).count() == workers
    })
    .await;
    drop(hanging);
    assert_eq!(service.connect().await.get("/primes/100").await, (200, "25".into()));
    signal(service.pid(), Signal::SIGINT);
    let (status, rest) = service.ended().await;
    assert!(status.success() && rest == "ended\n", "{status}: {rest}");
}
