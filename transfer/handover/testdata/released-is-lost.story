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
Freeze
> entry checkpoint/pages.img
- send-prepare
> prepare
- keep
Keep
- enter-released
- send-released
> released
- ask
> query
- enter-resumed
- resume
Resume
- finish

*handover.FailedError: migrate: handover: the cable is cut
the service is running on this host as before
the copy: runs

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
- store
Store checkpoint/pages.img -1 "memory"
- prepare
Prepare {"images":1}
- enter-prepared
- send-prepared
> prepared
- enter-aborted
- send-abort
> abort
- undo
Undo
- finish
> answer

*handover.FailedError: migrate: handover: the source can't be heard any more: the cable is cut
nothing is left of it on this host
the copy: none
