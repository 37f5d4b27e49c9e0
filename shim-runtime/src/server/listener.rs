//! Accepts connections from containerd, and from nobody else.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{getegid, geteuid};

use super::Shared;
use super::connection::Connection;
use crate::error::Result;
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::wait::is_ready;

/// How long accepting rests when there are no descriptors left; the backlog keeps who comes meanwhile.
const REST: Duration = Duration::from_millis(100);

/// The listening socket.
pub(crate) struct Listener {
    socket: UnixListener,
    server: Shared,
    /// Accepting has failed, and nobody was accepted since.
    is_short: bool,
}

impl Listener {
    /// Starts to accept.
    pub(crate) fn listen(socket: UnixListener, server: Shared, events: &mut EventLoop) -> Result<Token> {
        socket.set_nonblocking(true)?;
        events.add(|token, events| {
            events.watch(&socket, token, Ready::EPOLLIN)?;
            Ok(Box::new(Self { socket, server, is_short: false }))
        })
    }

    /// Whether a connection stands in the backlog that the loop has not seen yet.
    pub(crate) fn has_backlog(socket: &UnixListener) -> bool {
        is_ready(socket, PollFlags::POLLIN)
    }

    fn accept(&mut self, stream: UnixStream, events: &mut EventLoop) {
        if !is_own_user(&stream) {
            log::warn!("refused a connection of another user");
            return;
        }
        // containerd may be back after a restart, and want the events that wait for it.
        self.server.publisher.nudge();
        if let Err(error) = Connection::serve(stream, &self.server, events) {
            log::error!("cannot serve a connection: {error}");
        }
    }

    fn rest(&self, token: Token, events: &mut EventLoop) {
        events.rewatch(&self.socket, token, Ready::empty());
        events.after(REST, move |events| events.poke(token, Ready::empty()));
    }
}

/// Uid and gid of the peer must be this process's own (contract 4).
fn is_own_user(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials)
        .is_ok_and(|peer| peer.uid() == geteuid().as_raw() && peer.gid() == getegid().as_raw())
}

impl Source for Listener {
    fn ready(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Next {
        if ready.is_empty() {
            events.rewatch(&self.socket, token, Ready::EPOLLIN);
        }
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => {
                    self.is_short = false;
                    self.accept(stream, events);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Keep,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Once for each shortage: it is tried again ten times a second.
                    if !std::mem::replace(&mut self.is_short, true) {
                        log::warn!("cannot accept a connection for now: {error}");
                    }
                    self.rest(token, events);
                    return Next::Keep;
                }
            }
        }
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(&self.socket);
    }
}
