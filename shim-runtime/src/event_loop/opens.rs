//! Tells a loop's sources when somebody opens a file. All of them share one inotify instance, of which a user has
//! but 128 that kubelet, udev and others need as well; it exists only while there is something to be watched.

use std::collections::HashMap;
use std::rc::Rc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::{EventLoop, Next, Ready, Source, Token};
use crate::error::Result;

/// The files of one loop that are watched.
#[derive(Default)]
pub(crate) struct Opens {
    instance: Option<Instance>,
    /// Whom to tell. Sources that watch the same file share its descriptor.
    told: HashMap<WatchDescriptor, Vec<Token>>,
    /// A user has no instance left.
    #[cfg(test)]
    pub(crate) is_exhausted: bool,
}

struct Instance {
    inotify: Rc<Inotify>,
    token: Token,
}

/// A file that is watched for a source, to be given back to [`EventLoop::unwatch_opens`].
pub(crate) struct OpenWatch {
    file: WatchDescriptor,
    token: Token,
}

impl EventLoop {
    /// Has a source called whenever somebody opens a file.
    ///
    /// # Errors
    /// When the user's instances or watches are used up, above all.
    pub(crate) fn watch_opens(&mut self, path: &str, token: Token) -> Result<OpenWatch> {
        let inotify = self.inotify()?;
        let added = inotify.add_watch(path, AddWatchFlags::IN_OPEN);
        if let Ok(file) = added {
            self.opens.told.entry(file).or_default().push(token);
        }
        self.end_inotify_if_idle();
        Ok(OpenWatch { file: added?, token })
    }

    /// Stops to watch a file for a source.
    pub(crate) fn unwatch_opens(&mut self, watch: &OpenWatch) {
        let Some(told) = self.opens.told.get_mut(&watch.file) else { return };
        told.retain(|token| *token != watch.token);
        if told.is_empty() {
            self.opens.told.remove(&watch.file);
            if let Some(instance) = &self.opens.instance {
                let _ = instance.inotify.rm_watch(watch.file);
            }
        }
        self.end_inotify_if_idle();
    }

    /// The one instance, which is made when it is needed.
    fn inotify(&mut self) -> Result<Rc<Inotify>> {
        if let Some(instance) = &self.opens.instance {
            return Ok(instance.inotify.clone());
        }
        #[cfg(test)]
        if self.opens.is_exhausted {
            return Err(nix::errno::Errno::EMFILE.into());
        }
        let inotify = Rc::new(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
        let watched = inotify.clone();
        let token = self.add(|token, events| {
            events.watch(&*watched, token, Ready::EPOLLIN)?;
            Ok(Box::new(Dispatcher(watched)))
        })?;
        self.opens.instance = Some(Instance { inotify: inotify.clone(), token });
        Ok(inotify)
    }

    fn end_inotify_if_idle(&mut self) {
        if self.opens.told.is_empty()
            && let Some(instance) = self.opens.instance.take()
        {
            self.poke(instance.token, Ready::empty());
        }
    }
}

/// The instance on the loop.
struct Dispatcher(Rc<Inotify>);

impl Dispatcher {
    fn dispatch(&self, events: &mut EventLoop) {
        while let Ok(opened) = self.0.read_events() {
            for file in opened.into_iter().map(|event| event.wd) {
                // A copy: whoever is called may watch no more.
                let told = events.opens.told.get(&file).cloned();
                for token in told.into_iter().flatten() {
                    events.poke(token, Ready::EPOLLIN);
                }
            }
        }
    }
}

impl Source for Dispatcher {
    fn ready(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Next {
        if !ready.is_empty() {
            self.dispatch(events);
        }
        // Its last watch may have gone meanwhile.
        let is_needed = events.opens.instance.as_ref().is_some_and(|instance| instance.token == token);
        if is_needed { Next::Keep } else { Next::Close }
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(&*self.0);
    }
}
