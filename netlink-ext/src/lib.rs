//! What rtnetlink lacks for an overlay agent.
