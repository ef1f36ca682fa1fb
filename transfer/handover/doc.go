// Package handover decides which of two hosts a service lives on.
//
//	source                                            destination
//	idle      OFFER, network state -----------------> check
//	offered   <-------------------------------------- READY (or all PROBLEMS)         agreed
//	running   BUILD --------------------------------> build the namespace             building
//	          <-------------------------------------- BUILT
//	          what can be copied while it runs -----> store
//	frozen    freeze, dump: images -----------------> store
//	          PREPARE ------------------------------> restore, all stopped and mute
//	          keep mute beyond our own end
//	          <-------------------------------------- PREPARED                        prepared
//	released  RELEASED -----------------------------> go live, announce               live
//	          <-------------------------------------- RUNNING
//	          <-------------------------------------- SETTLED: whether a person should see to anything there
//	ended     end the frozen copy; BYE -------------> a tombstone stays
//
// What holds, whatever crashes and whatever is lost, is explored exhaustively by the model in the tests of this
// package:
//
//   - At no moment do both copies run or answer.
//   - Until the source is in "released", any failure gives back the service on the source as it was.
//   - From there on the destination decides. A source that doesn't hear from it stays frozen and mute and asks (QUERY)
//     until it knows: the answer is "live", "aborted", "busy: ask again", or "I don't know it", which is for a person.
//   - A destination that isn't live and loses the source aborts, durably, before it undoes anything.
//   - As long as no host is restarted, a copy of the service is there; and when the hosts are up and can talk to each
//     other, the migration comes to an end without a person.
//
// Every step is in the journal before it is taken. The process that works on a migration holds the journal's lock; when
// it dies, whoever finds the journal first ([RecoverSource], [RecoverDestination], the answer to a QUERY) goes on from
// there.
//
// The package knows nothing of processes and networks: these are behind [Service] on the source and [Host] on the
// destination.
package handover
