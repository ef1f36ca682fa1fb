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
Held
> entry held
- enter-ended
- send-bye
Held
> entry held
> bye
- end
End
- finish

moved, blackout 0s, the other side says {"announced":3}
the copy: none

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
- enter-live
- go-live
GoLive
- send-running
> running
- settle
Settle
> settled
Deliver "packets"
Deliver "packets"
- finish

moved, blackout 0s
the copy: runs
