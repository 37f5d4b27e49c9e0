//! How the exit of a process waits for its output (contract 5.3). containerd's clients close their ends of the FIFOs
//! as soon as they know of an exit, and what is unread then is lost. So an exit is told once the output that came
//! before it was read.
//!
//! The kernel does not tell when a FIFO was emptied, so it is looked at again and again, at growing distances. The
//! wait has bounds: it ends at once where nobody reads, and else when a reader takes nothing for 100 ms, or has
//! not taken everything after a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::copier::Control;
use super::gauge::Mark;
use super::logger_binary::Unread;
use crate::event_loop::EventLoop;

/// How long the first pause between two looks is. Each is twice as long as the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// How many looks in a row may find nothing read, which takes 100 ms. They are counted because on a machine that is
/// too busy for the reader to run the looks come late as well.
const LOOKS: u32 = 25;
/// How long the wait takes at most.
const LIMIT: Duration = Duration::from_secs(1);

/// See the module. Lives in a timer of the loop between two looks.
pub(super) struct Delivery<F> {
    /// The outputs that were not delivered yet.
    outputs: Vec<(Arc<Control>, Mark)>,
    logger: Option<Unread>,
    /// The least that was left so far.
    least: u64,
    /// How many looks in a row have found nothing read.
    in_vain: u32,
    pause: Duration,
    until: Instant,
    told: F,
}

impl<F: FnOnce() + Send + 'static> Delivery<F> {
    /// Marks what was written so far; once that was delivered, or need not be waited for any more, `told` is called.
    pub(super) fn new(outputs: &[Arc<Control>], logger: Option<Unread>, told: F) -> Self {
        Self {
            outputs: outputs.iter().map(|output| (output.clone(), output.gauge.mark())).collect(),
            logger,
            least: u64::MAX,
            in_vain: 0,
            pause: FIRST_PAUSE,
            until: Instant::now() + LIMIT,
            told,
        }
    }

    /// Looks what is left, and looks again later if that is something.
    pub(super) fn look(mut self, events: &mut EventLoop) {
        let left = self.left();
        if left < self.least {
            (self.least, self.in_vain) = (left, 0);
        } else {
            self.in_vain += 1;
            self.outputs.retain(|(output, _)| output.has_reader(events));
        }
        let is_delivered = self.outputs.is_empty() && self.logger.is_none();
        if is_delivered || self.in_vain >= LOOKS || Instant::now() >= self.until {
            return (self.told)();
        }
        let pause = self.pause;
        self.pause = LONGEST_PAUSE.min(pause * 2);
        events.after(pause, move |events| self.look(events));
    }

    /// How much is left; what was delivered is forgotten.
    fn left(&mut self) -> u64 {
        let mut sum = 0;
        self.outputs.retain_mut(|(output, mark)| {
            let left = output.gauge.left(mark);
            sum += left;
            left > 0
        });
        let logged = self.logger.as_ref().map_or(0, Unread::count);
        if logged == 0 {
            self.logger = None;
        }
        sum + logged as u64
    }
}
