//! Docker's semantics, line by line, on hosts that are network namespaces: the built `netd run`, real sockets, and
//! frames made byte by byte where no socket would send them.
//!
//! Every probe that must be dropped stands beside one that differs in a single attribute and is answered. No server may
//! have answered more requests than there were answers. On every host a guard watches the uplinks for sources that must
//! not leave. At the end of every test `netd unload` must leave nothing.

mod hostile;
mod layer2;
mod networks;
mod publish;
mod spoof;
mod table;
mod uplinks;
mod verbs;
mod world;
