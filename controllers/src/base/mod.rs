//! What every controller stands on: keys, shared informers, work queues, workers, expectations, events, API calls.
//!
//! Nothing in here knows a kind or a controller.

pub mod calls;
pub mod discovery;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod key;
pub mod metrics;
pub mod names;
pub mod queue;
pub mod refs;
pub mod watch;
pub mod worker;
