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
- enter-resumed
- resume
Resume
- send-abort
> abort
- finish

*handover.FailedError: migrate: restore: the service stood still for 2m0s
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
- enter-aborted
- send-abort
- undo
Undo
- finish

*handover.FailedError: migrate: restore: the source gave up: restore: the service stood still for 2m0s
nothing is left of it on this host
the copy: none
