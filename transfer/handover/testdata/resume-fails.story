# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
- enter-running
- begin
Begin
- send-build
> build
- precopy
Precopy ["files/big"]
> entry files/big
- enter-frozen
- freeze
Freeze fails: out of luck
- enter-resumed
- resume
Resume fails: out of luck

*handover.FailedError: migrate: freeze: out of luck
the service could not be resumed here: out of luck
  hint: see to that, then run: nsmigrate recover ID
the copy: stopped

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
- send-ready
> ready
- enter-agreed
- enter-building
- begin
Begin
- build
Build
- send-built
> built
- store
Store files/big -1 "what changes rarely"
- enter-aborted
- send-abort
> abort
- undo
Undo
- finish

*handover.FailedError: migrate: receive: the source can't be heard any more: the connection was lost
nothing is left of it on this host
the copy: none
