//! What goes through the sockets of a channel's end: items, each a frame.

use super::channel_waits::{Waits, Watched, Way};
use crate::error::sync::{Error, Why};
use crate::process::PeerSocket;
use crate::wire::frame::{self, BODY_MAX_DEFAULT, FrameBuffer};
use crate::wire::value::{self, EncodeError, names};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::sync::Mutex;

/// The sockets, once they are this process's own. One at a time sends, and one receives.
///
/// They are two, because whoever waits in recv(2) is woken whenever the other end takes what was
/// sent by the same socket (Linux, `unix_write_space`): for nothing, and on one processor that is
/// two switches between processes.
pub(super) struct Pipe {
    sends: PeerSocket,
    sending: Mutex<Outgoing>,
    receives: Arc<PeerSocket>,
    receiving: Mutex<Incoming>,
}

/// What has been encoded and not yet written: the rest of one item, when its sender was dropped
/// midway.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

struct Incoming {
    buffer: FrameBuffer,
    /// Where something to read is watched for.
    watched: Option<Watched>,
}

impl Pipe {
    pub(super) fn new(receives: PeerSocket, sends: PeerSocket) -> Self {
        let incoming = Incoming { buffer: FrameBuffer::new(BODY_MAX_DEFAULT), watched: None };
        Self {
            sends,
            sending: Mutex::default(),
            receives: Arc::new(receives),
            receiving: Mutex::new(incoming),
        }
    }

    /// Writes what is to be written. An error for want of time or room leaves the rest for the
    /// next.
    async fn flush(&self, out: &mut Outgoing, waits: &impl Waits) -> Result<(), Error> {
        while out.written < out.bytes.len() {
            match waits.send(self.sends.as_fd(), &out.bytes[out.written..]).await {
                Ok(len) => out.written += len,
                Err(error) => {
                    if error.is_closed() {
                        *out = Outgoing::default();
                    }
                    return Err(error);
                }
            }
        }
        out.written = 0;
        out.bytes.clear();
        out.bytes.shrink_to(64 << 10);
        Ok(())
    }

    pub(super) async fn send<T: Serialize, W: Waits>(
        &self,
        item: &T,
        waits: &W,
    ) -> Result<(), Error> {
        let mut out = waits.turn(Way::Out, &self.sending).await?;
        // The rest of one whose sender gave up midway, or this would come into the midst of it.
        self.flush(&mut out, waits).await?;
        let Outgoing { bytes, .. } = &mut *out;
        let start = frame::begin(bytes);
        let (encoded, things) =
            names::collecting(|| value::encode(item, bytes, start + W::FRAME_MAX));
        let encoded = encoded.map_err(|error| match error {
            EncodeError::TooLarge { .. } => Why::TooLarge { limit: W::FRAME_MAX },
            error => Why::Encode(error.to_string()),
        });
        let refused = match encoded {
            Ok(()) if things.is_empty() => None,
            Ok(()) => Some(Why::Encode(
                "a handle of a shared object does not travel through a channel".into(),
            )),
            Err(why) => Some(why),
        };
        if let Some(why) = refused {
            bytes.clear();
            return Err(why.into());
        }
        frame::finish(bytes, start);
        let begun = Begun(&mut out);
        let result = self.flush(begun.0, waits).await;
        drop(begun);
        result
    }

    pub(super) async fn recv<T: DeserializeOwned>(
        &self,
        waits: &impl Waits,
    ) -> Result<Option<T>, Error> {
        let mut incoming = waits.turn(Way::In, &self.receiving).await?;
        let Incoming { buffer, watched } = &mut *incoming;
        loop {
            let frame = buffer
                .next_frame()
                .map_err(|too_long| Error::from(Why::Decode(too_long.to_string())))?;
            if let Some(range) = frame {
                let decoded = value::decode(buffer.bytes(range));
                return decoded.map(Some).map_err(|error| Why::Decode(error.to_string()).into());
            }
            match waits.recv(&self.receives, watched, buffer.space()).await? {
                0 => return end_of(buffer),
                len => buffer.filled(len),
            }
        }
    }
}

/// What has not begun when its sender gives up is not sent later; what has is finished by the next.
struct Begun<'a>(&'a mut Outgoing);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.0.written == 0 {
            self.0.bytes.clear();
        }
    }
}

fn end_of<T>(buffer: &FrameBuffer) -> Result<Option<T>, Error> {
    match buffer.rest() {
        0 => Ok(None),
        rest => Err(Why::Decode(format!(
            "the other end was closed in the midst of an item, after {rest} bytes of it"
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel_waits::{AtOnce, InRuntime, OnThread, WHOLE_MAX};
    use super::super::wait::park_on;
    use super::*;
    use crate::error::sync::ErrorKind;
    use crate::process::sys;
    use crate::process::testing::HANG;
    use proptest::prelude::*;
    use std::io::{IoSlice, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// An end, and what the other one is made of: where it writes, and what it reads from.
    fn end() -> (Pipe, UnixStream, UnixStream) {
        let ((receives, writes), (sends, reads)) =
            (UnixStream::pair().expect("sockets"), UnixStream::pair().expect("sockets"));
        (Pipe::new(receives.into(), sends.into()), writes, reads)
    }

    fn recv<T: DeserializeOwned>(pipe: &Pipe) -> Result<Option<T>, Error> {
        park_on(pipe.recv(&OnThread(None)))
    }

    fn framed<T: Serialize>(item: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, |bytes| value::encode(item, bytes, usize::MAX).expect("encode"));
        bytes
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_an_item_an_error_or_the_end(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)) {
            let (pipe, mut writes, reads) = end();
            // As it comes, and within frames.
            for (n, part) in parts.iter().enumerate() {
                if n % 3 > 0 || part.is_empty() {
                    writes.write_all(&(part.len() as u32).to_le_bytes()).expect("write");
                }
                writes.write_all(part).expect("write");
            }
            drop((writes, reads));
            for _ in 0..=parts.len() * 20 {
                match recv::<(u8, String)>(&pipe) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Decode),
                }
            }
        }
    }

    #[test]
    fn descriptors_that_come_with_an_item_are_nobodys() {
        let (pipe, writes, mut reads) = end();
        let (kept, sent) = UnixStream::pair().expect("sockets");
        let item = framed(&7u32);
        sys::send_with_fds(writes.as_fd(), &[IoSlice::new(&item)], &[sent.as_fd()]).expect("send");
        drop(sent);
        sys::send(writes.as_fd(), &framed(&8u32)).expect("send");
        assert_eq!(recv(&pipe).expect("recv"), Some(7u32));
        kept.set_read_timeout(Some(HANG)).expect("set");
        assert_eq!((&kept).read(&mut [0; 8]).expect("it is closed"), 0);
        assert_eq!(recv(&pipe).expect("recv"), Some(8u32));
        // Nor is what goes against the direction.
        reads.write_all(&framed(&9u32)).expect("write");
        assert_eq!(
            park_on(pipe.recv::<u32>(&AtOnce)).expect_err("nothing").kind(),
            ErrorKind::Empty
        );
        drop(writes);
        assert_eq!(recv::<u32>(&pipe).expect("closed"), None);
    }

    #[test]
    fn a_socket_that_does_not_wait_is_waited_for() {
        let (pipe, mut writes, mut reads) = end();
        for socket in [pipe.receives.as_fd(), pipe.sends.as_fd()] {
            UnixStream::from(socket.try_clone_to_owned().expect("dup"))
                .set_nonblocking(true)
                .expect("set");
        }
        let large = vec![1u8; 1 << 20];
        let bytes = framed(&large);
        thread::scope(|scope| {
            let receiving = scope.spawn(|| recv::<Vec<u8>>(&pipe));
            let sending = scope.spawn(|| park_on(pipe.send(&large, &OnThread(None))));
            writes.write_all(&bytes).expect("write");
            assert_eq!(receiving.join().expect("no panic").expect("recv").as_ref(), Some(&large));
            let mut sent = vec![0; bytes.len()];
            reads.read_exact(&mut sent).expect("read");
            assert!(sent == bytes);
            sending.join().expect("no panic").expect("send");
        });
    }

    #[test]
    fn what_there_is_no_room_for_is_not_sent_in_part() {
        // However much lies there already, and up to the longest that there is.
        for len in [WHOLE_MAX - 10, WHOLE_MAX - 10_000] {
            for before in (0..64 << 10).step_by(4 << 10) {
                let (pipe, _writes, mut reads) = end();
                park_on(pipe.send(&vec![0u8; before], &AtOnce)).unwrap_or_else(|_| {
                    assert!(before > WHOLE_MAX - 10);
                });
                let item = vec![1u8; len];
                let mut sent = 0;
                let error = loop {
                    match park_on(pipe.send(&item, &AtOnce)) {
                        Ok(()) => sent += 1,
                        Err(error) => break error,
                    }
                };
                assert!(error.is_full() && sent > 0, "{error}");
                drop(pipe);
                let mut bytes = Vec::new();
                reads.read_to_end(&mut bytes).expect("read");
                let whole = sent * framed(&item).len()
                    + if before > WHOLE_MAX - 10 { 0 } else { framed(&vec![0u8; before]).len() };
                assert_eq!(bytes.len(), whole, "{len} bytes after {before}");
            }
        }
    }

    /// What has come before anybody watched, and while nobody did.
    #[test]
    fn what_came_to_a_thread_or_another_runtime_is_not_waited_for_again() {
        let (pipe, mut writes, _reads) = end();
        let runtimes: [_; 2] = std::array::from_fn(|_| {
            tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime")
        });
        for n in 0..100u32 {
            for m in 0..3 {
                writes.write_all(&framed(&(n, m))).expect("write");
            }
            // All three are read by the first who comes.
            let runtime = &runtimes[(n / 2 % 2) as usize];
            let came =
                if n % 3 == 0 { recv(&pipe) } else { runtime.block_on(pipe.recv(&InRuntime)) };
            assert_eq!(came.expect("recv"), Some((n, 0u32)));
            assert_eq!(runtime.block_on(pipe.recv(&InRuntime)).expect("recv"), Some((n, 1u32)));
            assert_eq!(recv(&pipe).expect("recv"), Some((n, 2u32)));
        }
        drop(writes);
        for runtime in runtimes.iter().chain(&runtimes) {
            assert_eq!(
                runtime.block_on(pipe.recv::<(u32, u32)>(&InRuntime)).expect("closed"),
                None
            );
        }
    }
}
