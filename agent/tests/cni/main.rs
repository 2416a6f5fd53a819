//! The CNI plugin `flannel` as a runtime meets it: the real program, with delegates that are scripts, and with the
//! reference plugins in network namespaces. Needs root, and the reference plugins (Debian: containernetworking-plugins).

#[cfg(test)]
mod attachments;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod install;
#[cfg(test)]
mod netns;
#[cfg(test)]
mod real;
#[cfg(test)]
mod support;
#[cfg(test)]
mod undo;
#[cfg(test)]
mod verbs;
